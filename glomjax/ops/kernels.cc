// Native forms of the operations of glomjax.ops that XLA compiles badly for a CPU, float32.
//
// Called through jax.ffi (see native.py); what each computes is defined by its plain_* twin there.
// Every sum is taken in an order that the shapes alone decide, never the number of threads, so that
// results are equal from run to run. NaN and infinity propagate: no fast-math.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Index = int64_t;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;
using After = ffi::RemainingArgs;  // what a call waits for and does not read

namespace {

// ---------------------------------------------------------------------------------------------
// Vectors
// ---------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
inline Vec splat(float value) { return value - Vec{}; }  // adding would turn -0 into 0
// The first n lanes alone; the others are 0.
inline Vec load_some(const float* p, Index n) {
  Vec v{};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store_some(float* p, Vec v, Index n) { std::memcpy(p, &v, n * sizeof(float)); }
// Over all lanes, halves at a time.
typedef float Quad __attribute__((vector_size(16)));
template <typename F>
inline float reduce(Vec v, F&& f) {
  Quad part[kLanes / 4];
  std::memcpy(part, &v, sizeof(v));
  for (int half = kLanes / 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] = f(part[i], part[i + half]);
  return f(f(part[0][0], part[0][1]), f(part[0][2], part[0][3]));
}
inline float sum(Vec v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Vec v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}
// v with the lanes from the nth on replaced by `other`.
inline Vec with_rest(Vec v, Index n, float other) {
  for (Index k = n; k < kLanes; ++k) v[k] = other;
  return v;
}
inline Index ceil_div(Index n, Index by) { return (n + by - 1) / by; }
inline Index round_up(Index n, Index by = kLanes) { return ceil_div(n, by) * by; }

// f(offset, lanes) over n floats: whole vectors, then what is left.
template <typename F>
inline void for_vectors(Index n, F&& f) {
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, std::integral_constant<Index, kLanes>());
  if (i < n) f(i, n - i);
}
inline Vec load(const float* p, std::integral_constant<Index, kLanes>) { return load(p); }
inline Vec load(const float* p, Index n) { return load_some(p, n); }
inline void store(float* p, Vec v, std::integral_constant<Index, kLanes>) { store(p, v); }
inline void store(float* p, Vec v, Index n) { store_some(p, v, n); }

// exp to 2e-7 relative; 0 below the smallest normal number, infinity above the largest.
inline Vec exponential(Vec x) {
  const Vec rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  Vec y = x < -87.3365f ? splat(-87.3365f) : x;
  y = y > 88.7f ? splat(88.7f) : y;
  Vec n = (y * 1.44269504f + rounder) - rounder;
  // ln 2 in two parts, the first of which has so few digits that n times it is exact.
  Vec r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  // 2^n in two factors: n may be 128.
  IntVec whole = __builtin_convertvector(n, IntVec);
  IntVec half = whole >> 1;
  Vec p = splat(0.00138148127f);
  p = p * r + 0.00836871005f;
  p = p * r + 0.0416683890f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  p = p * r * r + r + 1.0f;
  p = p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
  p = x < -87.3365f ? Vec{} : p;
  return x > 88.72f ? splat(std::numeric_limits<float>::infinity()) : p;
}

// The error function to 4e-7, as x P(x^2) / Q(x^2); coefficients fitted to minimise the largest
// relative error on [0, 3.95], beyond which it is 1 in float32.
inline Vec error_function(Vec x) {
  Vec u = x * x;
  Vec p = splat(2.02588535e-06f);
  p = p * u + 0.000284686772f;
  p = p * u + 0.00380818313f;
  p = p * u + 0.0528755151f;
  p = p * u + 0.191551015f;
  p = p * u + 1.12837911f;
  Vec q = splat(3.78315126e-05f);
  q = q * u + 0.00117072812f;
  q = q * u + 0.0150551368f;
  q = q * u + 0.11455989f;
  q = q * u + 0.503090322f;
  q = q * u + 1.0f;
  Vec y = x * p / q;
  y = x > 3.95f ? splat(1.0f) : y;
  return x < -3.95f ? splat(-1.0f) : y;
}

// ---------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------

// Asks Linux for large pages under a result, as NumPy does for its arrays: XLA gives a step fresh
// memory each time, and a fault for every 4 KiB of it takes as long as many an operation.
void prefer_large_pages(Result x) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x->typed_data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t end = (begin + x->size_bytes()) / kPage * kPage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// ---------------------------------------------------------------------------------------------
// Threads
// ---------------------------------------------------------------------------------------------

// So many tasks of an operation at least, where its shapes allow: for machines with more cores.
constexpr Index kTasks = 32;

// body(task) for every task, on XLA's own threads and the calling one.
//
// The caller takes part, so that it only ever waits for a task that is running on another thread;
// a thread that comes too late finds no task left and never touches `body`.
template <typename F>
void parallel(ffi::ThreadPool& pool, Index tasks, const F& body) {
  struct Shared {
    std::atomic<Index> next{0};
    Index left;
    std::mutex mutex;
    std::condition_variable done;
  };
  if (tasks <= 0) return;
  auto shared = std::make_shared<Shared>();
  shared->left = tasks;
  auto work = [shared, tasks, &body] {
    Index finished = 0;
    for (Index i; (i = shared->next.fetch_add(1)) < tasks; ++finished) body(i);
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->left -= finished;
    if (shared->left == 0) shared->done.notify_all();
  };
  const Index helpers = std::min<Index>(pool.num_threads(), tasks) - 1;
  for (Index i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->left == 0; });
}

// out[n] = the sum of `parts` rows of n, in their order.
void add_up(ffi::ThreadPool& pool, const float* partial, Index parts, Index n, float* out) {
  constexpr Index kSums = 8192;  // of one task
  parallel(pool, ceil_div(n, kSums), [&](Index task) {
    const Index first = task * kSums, count = std::min(kSums, n - first);
    std::fill_n(out + first, count, 0.0f);
    for (Index p = 0; p < parts; ++p)
      for_vectors(count, [&](Index i, auto lanes) {
        float* to = out + first + i;
        store(to, load(to, lanes) + load(partial + p * n + first + i, lanes), lanes);
      });
  });
}

// x [..., C] as rows of C.
struct Rows {
  Index count, width;
  explicit Rows(const Array& x) : count(1), width(x.dimensions().back()) {
    for (size_t i = 0; i + 1 < x.dimensions().size(); ++i) count *= x.dimensions()[i];
  }
};
constexpr Index kRows = 64;  // rows of one task
inline Index chunks(Index rows) { return ceil_div(rows, kRows); }

// body(first row, end, task) for each chunk of rows.
template <typename F>
void parallel_rows(ffi::ThreadPool& pool, Index rows, const F& body) {
  parallel(pool, chunks(rows), [&](Index task) {
    body(task * kRows, std::min(rows, (task + 1) * kRows), task);
  });
}

// ---------------------------------------------------------------------------------------------
// Layer normalisation
// ---------------------------------------------------------------------------------------------

struct Moments {
  float mean, inverse_std;
};
Moments moments(const float* x, Index n, float epsilon) {
  Vec total{};
  for_vectors(n, [&](Index i, auto lanes) { total += load(x + i, lanes); });
  const float mean = sum(total) / n;
  Vec squares{};
  for_vectors(n, [&](Index i, auto lanes) {
    Vec centred = load(x + i, lanes) - mean;
    if (lanes != kLanes)
      for (Index k = lanes; k < kLanes; ++k) centred[k] = 0;
    squares += centred * centred;
  });
  return {mean, 1.0f / std::sqrt(sum(squares) / n + epsilon)};
}

ffi::Error layer_norm(ffi::ThreadPool pool, Array x, Array scale, Array bias, After, float epsilon,
                      Result y) {
  prefer_large_pages(y);
  const Rows rows(x);
  parallel_rows(pool, rows.count, [&](Index first, Index end, Index) {
    for (Index r = first; r < end; ++r) {
      const float* in = x.typed_data() + r * rows.width;
      float* out = y->typed_data() + r * rows.width;
      const Moments m = moments(in, rows.width, epsilon);
      for_vectors(rows.width, [&](Index i, auto lanes) {
        Vec normalised = (load(in + i, lanes) - m.mean) * m.inverse_std;
        store(out + i,
              normalised * load(scale.typed_data() + i, lanes) + load(bias.typed_data() + i, lanes),
              lanes);
      });
    }
  });
  return ffi::Error::Success();
}

ffi::Error layer_norm_gradient(ffi::ThreadPool pool, Array x, Array scale, Array, Array g,
                               float epsilon, Result dx, Result dscale, Result dbias) {
  prefer_large_pages(dx);
  const Rows rows(x);
  const Index n = rows.width, parts = chunks(rows.count);
  std::vector<float> scale_partial(parts * n), bias_partial(parts * n);
  parallel_rows(pool, rows.count, [&](Index first, Index end, Index task) {
    float* task_scale = scale_partial.data() + task * n;
    float* task_bias = bias_partial.data() + task * n;
    for (Index r = first; r < end; ++r) {
      const float* in = x.typed_data() + r * n;
      const float* up = g.typed_data() + r * n;
      float* out = dx->typed_data() + r * n;
      const Moments m = moments(in, n, epsilon);
      Vec sum_g{}, sum_gn{};
      for_vectors(n, [&](Index i, auto lanes) {
        const Vec normalised = (load(in + i, lanes) - m.mean) * m.inverse_std;
        const Vec gradient = load(up + i, lanes), gn = gradient * normalised;
        store(task_scale + i, load(task_scale + i, lanes) + gn, lanes);
        store(task_bias + i, load(task_bias + i, lanes) + gradient, lanes);
        const Vec wide = load(scale.typed_data() + i, lanes);
        sum_g += gradient * wide;
        sum_gn += gn * wide;
      });
      const float mean_g = sum(sum_g) / n, mean_gn = sum(sum_gn) / n;
      for_vectors(n, [&](Index i, auto lanes) {
        const Vec normalised = (load(in + i, lanes) - m.mean) * m.inverse_std;
        const Vec wide = load(up + i, lanes) * load(scale.typed_data() + i, lanes);
        store(out + i, (wide - mean_g - normalised * mean_gn) * m.inverse_std, lanes);
      });
    }
  });
  add_up(pool, scale_partial.data(), parts, n, dscale->typed_data());
  add_up(pool, bias_partial.data(), parts, n, dbias->typed_data());
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Bias and GELU or ReLU
// ---------------------------------------------------------------------------------------------

inline Vec normal_cdf(Vec z) { return 0.5f * (1.0f + error_function(z * 0.707106781f)); }

ffi::Error bias_gelu(ffi::ThreadPool pool, Array x, Array bias, After, Result y) {
  prefer_large_pages(y);
  const Rows rows(x);
  parallel_rows(pool, rows.count, [&](Index first, Index end, Index) {
    for (Index r = first; r < end; ++r) {
      const float* in = x.typed_data() + r * rows.width;
      float* out = y->typed_data() + r * rows.width;
      for_vectors(rows.width, [&](Index i, auto lanes) {
        const Vec z = load(in + i, lanes) + load(bias.typed_data() + i, lanes);
        store(out + i, z * normal_cdf(z), lanes);
      });
    }
  });
  return ffi::Error::Success();
}

// dx [..., C] = f(offset in the array, column, lanes) and dbias [C] = its column sums.
template <typename F>
void with_column_sums(ffi::ThreadPool& pool, const Rows& rows, Result& dx, Result& dbias,
                      const F& f) {
  const Index n = rows.width, parts = chunks(rows.count);
  std::vector<float> partial(parts * n);
  parallel_rows(pool, rows.count, [&](Index first, Index end, Index task) {
    float* total = partial.data() + task * n;
    for (Index r = first; r < end; ++r)
      for_vectors(n, [&](Index i, auto lanes) {
        const Vec d = f(r * n + i, i, lanes);
        store(dx->typed_data() + r * n + i, d, lanes);
        store(total + i, load(total + i, lanes) + d, lanes);
      });
  });
  add_up(pool, partial.data(), parts, n, dbias->typed_data());
}

ffi::Error bias_gelu_gradient(ffi::ThreadPool pool, Array x, Array bias, Array g, Result dx,
                              Result dbias) {
  prefer_large_pages(dx);
  with_column_sums(pool, Rows(x), dx, dbias, [&](Index at, Index column, auto lanes) -> Vec {
    const Vec z = load(x.typed_data() + at, lanes) + load(bias.typed_data() + column, lanes);
    const Vec density = 0.398942280f * exponential(-0.5f * z * z);
    return load(g.typed_data() + at, lanes) * (normal_cdf(z) + z * density);
  });
  return ffi::Error::Success();
}

// From the output y = max(x + bias, 0) of bias and ReLU. A NaN in y passes g on.
ffi::Error bias_relu_gradient(ffi::ThreadPool pool, Array y, Array g, Result dx, Result dbias) {
  prefer_large_pages(dx);
  with_column_sums(pool, Rows(y), dx, dbias, [&](Index at, Index, auto lanes) -> Vec {
    return load(y.typed_data() + at, lanes) <= 0 ? Vec{} : load(g.typed_data() + at, lanes);
  });
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// 3x3 depthwise convolution with bias, added to its input
// ---------------------------------------------------------------------------------------------

struct Map {
  Index batch, height, width, channels;
  explicit Map(const Array& x)
      : batch(x.dimensions()[0]),
        height(x.dimensions()[1]),
        width(x.dimensions()[2]),
        channels(x.dimensions()[3]) {}
  Index at(Index b, Index y, Index x) const { return ((b * height + y) * width + x) * channels; }
};

// y = x + (the correlation of x with 3x3 filters + bias).
void residual_depthwise(ffi::ThreadPool& pool, const Map& map, const float* x, const float* kernel,
                        const float* bias, float* y) {
  const Index n = map.channels;
  parallel(pool, map.batch * map.height, [&](Index task) {
    const Index b = task / map.height, row = task % map.height;
    for_vectors(n, [&](Index c, auto lanes) {
      Vec taps[9];
      for (int t = 0; t < 9; ++t) taps[t] = load(kernel + t * n + c, lanes);
      const Vec offset = load(bias + c, lanes);
      for (Index column = 0; column < map.width; ++column) {
        Vec total{};
        for (Index i = 0; i < 3; ++i) {
          if (row + i < 1 || row + i > map.height) continue;
          for (Index j = 0; j < 3; ++j) {
            if (column + j < 1 || column + j > map.width) continue;
            total += taps[3 * i + j] * load(x + map.at(b, row + i - 1, column + j - 1) + c, lanes);
          }
        }
        const Index here = map.at(b, row, column) + c;
        store(y + here, load(x + here, lanes) + (total + offset), lanes);
      }
    });
  });
}

ffi::Error residual_depthwise_conv2d(ffi::ThreadPool pool, Array x, Array kernel, Array bias,
                                     Result y) {
  prefer_large_pages(y);
  residual_depthwise(pool, Map(x), x.typed_data(), kernel.typed_data(), bias.typed_data(),
                     y->typed_data());
  return ffi::Error::Success();
}

ffi::Error residual_depthwise_conv2d_gradient(ffi::ThreadPool pool, Array x, Array kernel,
                                              Array, Array g, Result dx, Result dkernel,
                                              Result dbias) {
  prefer_large_pages(dx);
  constexpr Index kMapRows = 8;  // of one task
  const Map map(x);
  const Index n = map.channels, per_image = ceil_div(map.height, kMapRows);
  const Index parts = map.batch * per_image;
  // The gradient of x is the same operation on g with the filters turned by 180 degrees.
  std::vector<float> turned(9 * n), zeros(n);
  for (Index t = 0; t < 9; ++t)
    std::copy_n(kernel.typed_data() + (8 - t) * n, n, turned.data() + t * n);
  residual_depthwise(pool, map, g.typed_data(), turned.data(), zeros.data(), dx->typed_data());

  std::vector<float> kernel_partial(parts * 9 * n), bias_partial(parts * n);
  parallel(pool, parts, [&](Index task) {
    const Index b = task / per_image, first = task % per_image * kMapRows;
    const Index end = std::min(map.height, first + kMapRows);
    for_vectors(n, [&](Index c, auto lanes) {
      Vec taps[9]{}, total{};
      for (Index row = first; row < end; ++row)
        for (Index column = 0; column < map.width; ++column) {
          const Vec up = load(g.typed_data() + map.at(b, row, column) + c, lanes);
          total += up;
          for (Index i = 0; i < 3; ++i) {
            if (row + i < 1 || row + i > map.height) continue;
            for (Index j = 0; j < 3; ++j) {
              if (column + j < 1 || column + j > map.width) continue;
              taps[3 * i + j] +=
                  up * load(x.typed_data() + map.at(b, row + i - 1, column + j - 1) + c, lanes);
            }
          }
        }
      for (int t = 0; t < 9; ++t)
        store(kernel_partial.data() + (task * 9 + t) * n + c, taps[t], lanes);
      store(bias_partial.data() + task * n + c, total, lanes);
    });
  });
  add_up(pool, kernel_partial.data(), parts, 9 * n, dkernel->typed_data());
  add_up(pool, bias_partial.data(), parts, n, dbias->typed_data());
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Small matrix products, for attention
// ---------------------------------------------------------------------------------------------

// A matrix in a task's own memory, rows of `stride` floats, a multiple of the vector length.
struct Matrix {
  Index stride;
  std::vector<float> values;
  Matrix(Index rows, Index columns) : stride(round_up(columns)), values(rows * stride) {}
  float* row(Index i) { return values.data() + i * stride; }
  void clear() { std::fill(values.begin(), values.end(), 0.0f); }
};

constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // of a tile that the registers hold
constexpr int kTileColumns = 2 * kLanes;

// What a product sums over: `inner` values side by side in a row of a, and again `step` floats on,
// `times` in all; the rows of b follow one another.
struct Inner {
  Index inner, times = 1, step = 0;
};

// kM rows and kN vectors of c = a b, or a^T b, kept in registers over the inner extent; with `add`,
// c += that.
template <bool kTransposed, int kM, int kN>
inline void tile(Inner over, const float* a, Index a_stride, const float* b, Index b_stride,
                 float* c, Index c_stride, bool add) {
  Vec total[kM][kN]{};
  for (Index t = 0; t < over.times; ++t, a += over.step)
    for (Index k = 0; k < over.inner; ++k, b += b_stride) {
      Vec right[kN];
      for (int n = 0; n < kN; ++n) right[n] = load(b + n * kLanes);
      for (int m = 0; m < kM; ++m) {
        const Vec left = splat(kTransposed ? a[k * a_stride + m] : a[m * a_stride + k]);
        for (int n = 0; n < kN; ++n) total[m][n] += left * right[n];
      }
    }
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) {
      float* to = c + m * c_stride + n * kLanes;
      store(to, add ? load(to) + total[m][n] : total[m][n]);
    }
}

template <bool kTransposed, int kN, int kM = kTileRows>
inline void tile_of(Index rows, Inner over, const float* a, Index a_stride, const float* b,
                    Index b_stride, float* c, Index c_stride, bool add) {
  if (rows == kM)
    tile<kTransposed, kM, kN>(over, a, a_stride, b, b_stride, c, c_stride, add);
  else if constexpr (kM > 1)
    tile_of<kTransposed, kN, kM - 1>(rows, over, a, a_stride, b, b_stride, c, c_stride, add);
}

// Tiles one below the other, of nearly equal heights: a low one would wait for its few sums.
template <bool kTransposed, int kN>
inline void column_of_tiles(Index rows, Inner over, const float* a, Index a_stride, const float* b,
                            Index b_stride, float* c, Index c_stride, bool add) {
  const Index count = ceil_div(rows, kTileRows);
  for (Index t = 0; t < count; ++t) {
    const Index m = rows * t / count;
    tile_of<kTransposed, kN>(rows * (t + 1) / count - m, over, a + m * (kTransposed ? 1 : a_stride),
                             a_stride, b, b_stride, c + m * c_stride, c_stride, add);
  }
}

// c [rows, columns] = a b, or += with `add`; a is [rows, inner], or with kTransposed its transpose
// [inner, rows]. All three reach to the end of their last vector.
template <bool kTransposed>
void product(Index rows, Index columns, Index inner, const float* a, Index a_stride, const float* b,
             Index b_stride, float* c, Index c_stride, bool add) {
  Index n = 0;
  for (; n + kTileColumns <= round_up(columns); n += kTileColumns)
    column_of_tiles<kTransposed, 2>(rows, {inner}, a, a_stride, b + n, b_stride, c + n, c_stride,
                                    add);
  if (n < columns)
    column_of_tiles<kTransposed, 1>(rows, {inner}, a, a_stride, b + n, b_stride, c + n, c_stride,
                                    add);
}
void multiply(Index rows, Index columns, Index inner, Matrix& a, Matrix& b, Matrix& c) {
  product<false>(rows, columns, inner, a.row(0), a.stride, b.row(0), b.stride, c.row(0), c.stride,
                 false);
}

// The softmax of the first n of x, the rest of its last vector 0. In place.
void softmax(float* x, Index n) {
  const float lowest = -std::numeric_limits<float>::infinity();
  // What lies behind n takes no part: exp(-inf) is 0.
  if (const Index whole = n / kLanes * kLanes; whole < n)
    store(x + whole, with_rest(load(x + whole), n - whole, lowest));
  Vec tops = splat(lowest);
  for (Index i = 0; i < n; i += kLanes) {
    const Vec v = load(x + i);
    tops = v > tops ? v : tops;  // a NaN shows in the sum instead
  }
  const float top = largest(tops);
  Vec total{};
  for (Index i = 0; i < n; i += kLanes) {
    const Vec v = exponential(load(x + i) - top);
    total += v;
    store(x + i, v);
  }
  const float inverse = 1.0f / sum(total);
  for (Index i = 0; i < n; i += kLanes) store(x + i, load(x + i) * inverse);
}

// d = p (d - sum p d): from the gradient of a softmax's output p to that of its input. In place.
void softmax_gradient(const float* p, float* d, Index n) {
  Vec total{};
  for (Index i = 0; i < n; i += kLanes) total += load(p + i) * load(d + i);
  const float mean = sum(total);
  for (Index i = 0; i < n; i += kLanes) store(d + i, load(p + i) * (load(d + i) - mean));
}

// total += a^T b over so few rows that the total over many such blocks stays accurate: a running
// sum over thousands of tokens would lose two digits, which the softmax after it shows.
void add_block(Index rows, Index columns, Index inner, Matrix& a, Matrix& b, Matrix& block,
               Matrix& total) {
  product<true>(rows, columns, inner, a.row(0), a.stride, b.row(0), b.stride, block.row(0),
                block.stride, false);
  for (size_t i = 0; i < total.values.size(); i += kLanes)
    store(&total.values[i], load(&total.values[i]) + load(&block.values[i]));
}

void transpose(Index rows, Index columns, Matrix& a, Matrix& out) {
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) out.row(j)[i] = a.row(i)[j];
}

// out[0:n] = (x + bias) * factor, x null for a token of padding.
inline void gather(const float* x, const float* bias, Index n, float factor, float* out) {
  for_vectors(n, [&](Index i, auto lanes) {
    const Vec offset = load(bias + i, lanes);
    store(out + i, (x ? load(x + i, lanes) + offset : offset) * factor, lanes);
  });
}
inline void scatter(const float* from, Index n, float factor, float* to, float* total) {
  for_vectors(n, [&](Index i, auto lanes) {
    const Vec v = load(from + i, lanes) * factor;
    if (to) store(to + i, v, lanes);
    if (total) store(total + i, load(total + i, lanes) + v, lanes);
  });
}

// ---------------------------------------------------------------------------------------------
// Gradients of the weights of dense layers and convolutions
// ---------------------------------------------------------------------------------------------

constexpr int kLineFloats = 16;  // of a line of the cache
constexpr Index kBlock = 288;  // rows and columns of a block of the gradient, which a task computes
constexpr Index kDepth = 128;  // positions that are summed at once
constexpr Index kAhead = 8;  // positions between what is read and what is asked for

// A block of positions x columns as panels of kWide columns, each [positions, kWide], the last one
// filled up with zeros. Products read it from one end to the other.
template <int kWide>
struct Panels {
  // Not a power of two: panels that a row is written to must not share a set of the cache.
  static constexpr Index kStride = kDepth * kWide + kLineFloats;
  std::vector<float> values;
  explicit Panels(Index columns) : values(ceil_div(columns, kWide) * kStride) {}
  float* panel(Index column) { return values.data() + column / kWide * kStride; }
  // Columns first, first + 1, ... of position k, zeros where `from` is null. `next` floats later
  // lies what will be read soon.
  void write(Index k, Index first, const float* from, Index n, Index next) {
    for (Index i = 0; from && i < n; i += kLineFloats) __builtin_prefetch(from + next + i);
    while (n > 0) {
      const Index start = first % kWide, count = std::min(n, kWide - start);
      float* to = panel(first - start) + k * kWide + start;
      if (!from)
        std::fill_n(to, count, 0.0f);
      else if (count == kWide)
        std::copy_n(from, kWide, to);  // so many that the compiler knows them
      else
        std::copy_n(from, count, to);
      first += count;
      n -= count;
      if (from) from += count;
    }
  }
};

// dkernel [h, w, I, O] of a correlation of x [B, H, W, I] at a stride, after `top` and `left` rows
// and columns of zeros, and dbias [O], from the gradient g [B, H', W', O] of its output. A dense
// layer is one of 1x1 filters.
ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, int64_t stride, int64_t top,
                           int64_t left, Result dkernel, Result dbias) {
  const Map in(x), out(g);
  const Index filter_height = dkernel->dimensions()[0], filter_width = dkernel->dimensions()[1];
  const Index inner = filter_width * in.channels;
  const Index rows = filter_height * inner, columns = out.channels;  // of dkernel as a matrix
  const Index positions = out.batch * out.height * out.width;
  const Index down = ceil_div(rows, kBlock), across = ceil_div(columns, kBlock);
  const Index blocks = down * across, depths = ceil_div(positions, kDepth);
  // Positions are divided where there are few blocks.
  const Index parts = std::clamp<Index>(ceil_div(kTasks, blocks), 1, depths);
  std::unique_ptr<float[]> partial(new float[parts * rows * columns]);
  std::unique_ptr<float[]> bias_partial(new float[parts * columns]);

  parallel(pool, parts * blocks, [&](Index task) {
    const Index part = task / blocks;
    const Index row = task % blocks / across * kBlock, column = task % across * kBlock;
    const Index height = std::min(kBlock, rows - row), wide = std::min(kBlock, columns - column);
    Panels<kTileRows> patches(height);
    Panels<kTileColumns> gradients(wide);
    Matrix total(round_up(height, kTileRows), round_up(wide, kTileColumns));
    Matrix column_sums(1, wide);
    const Index end = depths * (part + 1) / parts * kDepth;
    for (Index first = depths * part / parts * kDepth; first < end; first += kDepth) {
      const Index count = std::min(kDepth, positions - first);
      Matrix sums(1, wide);
      for (Index k = 0; k < count; ++k) {
        const Index position = first + k, b = position / (out.height * out.width);
        const Index y = position / out.width % out.height, at = position % out.width;
        const float* up = g.typed_data() + position * columns + column;
        gradients.write(k, 0, up, wide, kAhead * columns);
        if (row == 0) scatter(up, wide, 1, nullptr, sums.row(0));
        for (Index r = 0; r < height;) {  // under one row of the filter after another
          const Index filter_row = (row + r) / inner, start = (row + r) % inner;
          const Index n = std::min(height - r, inner - start);
          const Index from_y = y * stride + filter_row - top;
          // In the row of x, which may begin after these n floats do and end before.
          const Index from = (at * stride - left) * in.channels + start;
          const bool none = from_y < 0 || from_y >= in.height;
          const Index before = none ? n : std::clamp<Index>(-from, 0, n);
          const Index stop = none ? n : std::clamp(in.width * in.channels - from, before, n);
          patches.write(k, r, nullptr, before, 0);
          if (before < stop)
            patches.write(k, r + before, x.typed_data() + in.at(b, from_y, 0) + from + before,
                          stop - before, kAhead * stride * in.channels);
          patches.write(k, r + stop, nullptr, n - stop, 0);
          r += n;
        }
      }
      if (row == 0) scatter(sums.row(0), wide, 1, nullptr, column_sums.row(0));
      for (Index j = 0; j < wide; j += kTileColumns)
        for (Index i = 0; i < height; i += kTileRows)
          tile<true, kTileRows, 2>({count}, patches.panel(i), kTileRows, gradients.panel(j),
                                   kTileColumns, total.row(i) + j, total.stride, true);
    }
    for (Index i = 0; i < height; ++i)
      std::copy_n(total.row(i), wide,
                  partial.get() + (part * rows + row + i) * columns + column);
    if (row == 0)
      std::copy_n(column_sums.row(0), wide, bias_partial.get() + part * columns + column);
  });
  add_up(pool, partial.get(), parts, rows * columns, dkernel->typed_data());
  add_up(pool, bias_partial.get(), parts, columns, dbias->typed_data());
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Convolution
// ---------------------------------------------------------------------------------------------

constexpr Index kPositions = 96;  // of the output, at least, that a task reads the filters for

// y [B, H', W', O] = the correlation of x [B, H, W, I], after `top` and `left` rows and columns of
// zeros, with filters [h, w, I, O] at a stride.
ffi::Error conv2d(ffi::ThreadPool pool, Array x, Array kernel, int64_t stride, int64_t top,
                  int64_t left, Result y) {
  prefer_large_pages(y);
  const Map in(x), out(*y);
  const Index filter_height = kernel.dimensions()[0], filter_width = kernel.dimensions()[1];
  const Index outputs = out.channels, inner = filter_width * in.channels;
  const Index depth = filter_height * inner;  // values under a filter
  // The filters by panels of columns, the last one maybe half as wide, each [depth, its columns].
  const Index panels = ceil_div(outputs, kTileColumns);
  const auto wide = [&](Index panel) {
    return outputs - panel * kTileColumns > kLanes ? kTileColumns : kLanes;
  };
  std::unique_ptr<float[]> filters(new float[panels * depth * kTileColumns]);
  parallel(pool, panels, [&](Index panel) {
    float* to = filters.get() + panel * depth * kTileColumns;
    const float* from = kernel.typed_data() + panel * kTileColumns;
    const Index columns = wide(panel), n = std::min(columns, outputs - panel * kTileColumns);
    for (Index k = 0; k < depth; ++k, to += columns, from += outputs) {
      std::copy_n(from, n, to);
      std::fill(to + n, to + columns, 0.0f);
    }
  });

  const Index rows = std::min(out.height, ceil_div(kPositions, out.width));
  const Index groups = ceil_div(out.height, rows);
  const Index width = (out.width - 1) * stride + filter_width;  // of what a row of the output reads
  parallel(pool, out.batch * groups, [&](Index task) {
    const Index b = task / groups, first = task % groups * rows;
    const Index end = std::min(out.height, first + rows);
    // What the rows read, with its zeros.
    const Index height = (end - first - 1) * stride + filter_height, line = width * in.channels;
    std::vector<float> padded(height * line);
    const Index begin = std::max<Index>(0, left), count = std::min(in.width + left, width) - begin;
    for (Index r = 0; r < height; ++r) {
      const Index from = first * stride + r - top;
      if (from >= 0 && from < in.height && count > 0)
        std::copy_n(x.typed_data() + in.at(b, from, begin - left), count * in.channels,
                    padded.data() + r * line + begin * in.channels);
    }
    Matrix sums(out.width, kTileColumns);
    for (Index panel = 0; panel < panels; ++panel) {
      const Index columns = wide(panel), n = std::min(columns, outputs - panel * kTileColumns);
      for (Index row = first; row < end; ++row) {
        // What lies under a row of a filter is contiguous.
        (columns == kTileColumns ? column_of_tiles<false, 2> : column_of_tiles<false, 1>)(
            out.width, {inner, filter_height, line}, padded.data() + (row - first) * stride * line,
            stride * in.channels, filters.get() + panel * depth * kTileColumns, columns,
            sums.row(0), sums.stride, false);
        for (Index column = 0; column < out.width; ++column)
          scatter(sums.row(column), n, 1,
                  y->typed_data() + out.at(b, row, column) + panel * kTileColumns, nullptr);
      }
    }
  });
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Max pooling
// ---------------------------------------------------------------------------------------------

constexpr Index kPoolChannels = 64;  // of one task of the gradient

// f(offset in x) for the pixels of a window, in row-major order, those outside left out.
template <typename F>
inline void for_window(const Map& in, Index b, Index y, Index x, Index window, F&& f) {
  for (Index i = std::max<Index>(0, -y); i < std::min(window, in.height - y); ++i)
    for (Index j = std::max<Index>(0, -x); j < std::min(window, in.width - x); ++j)
      f(in.at(b, y + i, x + j));
}

// The maximum over window x window at a stride, `top` rows and `left` columns of padding before.
ffi::Error max_pool(ffi::ThreadPool pool, Array x, int64_t left, int64_t stride, int64_t top,
                    int64_t window, Result y) {
  prefer_large_pages(y);
  const Map in(x), out(*y);
  parallel(pool, out.batch * out.height, [&](Index task) {
    const Index b = task / out.height, row = task % out.height;
    for (Index column = 0; column < out.width; ++column)
      for_vectors(out.channels, [&](Index c, auto lanes) {
        Vec most = splat(-std::numeric_limits<float>::infinity());
        for_window(in, b, row * stride - top, column * stride - left, window, [&](Index pixel) {
          const Vec v = load(x.typed_data() + pixel + c, lanes);
          most = (v > most) | (v != v) ? v : most;  // a NaN stays
        });
        store(y->typed_data() + out.at(b, row, column) + c, most, lanes);
      });
  });
  return ffi::Error::Success();
}

// The gradient g of each output goes to the first of its window's largest pixels.
ffi::Error max_pool_gradient(ffi::ThreadPool pool, Array x, Array y, Array g, int64_t left,
                             int64_t stride, int64_t top, int64_t window, Result dx) {
  prefer_large_pages(dx);
  const Map in(x), out(y);
  const Index parts = ceil_div(in.channels, kPoolChannels);
  // Windows overlap: one task has all those of its channels.
  parallel(pool, in.batch * parts, [&](Index task) {
    const Index b = task / parts, channel = task % parts * kPoolChannels;
    const Index n = std::min(kPoolChannels, in.channels - channel);
    for (Index pixel = 0; pixel < in.height * in.width; ++pixel)
      std::fill_n(dx->typed_data() + in.at(b, 0, pixel) + channel, n, 0.0f);
    for (Index row = 0; row < out.height; ++row)
      for (Index column = 0; column < out.width; ++column)
        for_vectors(n, [&](Index c, auto lanes) {
          const Index here = out.at(b, row, column) + channel + c;
          const Vec largest = load(y.typed_data() + here, lanes);
          const Vec up = load(g.typed_data() + here, lanes);
          IntVec taken{};
          for_window(in, b, row * stride - top, column * stride - left, window, [&](Index pixel) {
            const Vec v = load(x.typed_data() + pixel + channel + c, lanes);
            float* to = dx->typed_data() + pixel + channel + c;
            const IntVec wins = ((v == largest) | (v != v)) & ~taken;
            taken |= wins;
            store(to, load(to, lanes) + (wins ? up : Vec{}), lanes);
          });
        });
  });
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Attention within windows
// ---------------------------------------------------------------------------------------------

// The windows of a map padded at its lower and right edges; a task is a row of windows and some of
// the heads, all of them where that leaves enough tasks: heads share the pages of memory.
struct Windows {
  Index batch, height, width, channels, heads, size, rows, columns, down, across, groups;
  Windows(const Array& qkv, Index heads, Index rows, Index columns)
      : batch(qkv.dimensions()[0]),
        height(qkv.dimensions()[1]),
        width(qkv.dimensions()[2]),
        channels(qkv.dimensions()[3] / 3),
        heads(heads),
        size(channels / heads),
        rows(rows),
        columns(columns),
        down(ceil_div(height, rows)),
        across(ceil_div(width, columns)),
        groups(std::min(heads, ceil_div(kTasks, batch * down))) {}
  Index tasks() const { return batch * down * groups; }
  Index length() const { return rows * columns; }

  // f(image, row of windows, window in it, head) for all of a task.
  template <typename F>
  void for_each(Index task, F&& f) const {
    const Index group = task % groups, row = task / groups;
    for (Index column = 0; column < across; ++column)
      for (Index head = heads * group / groups; head < heads * (group + 1) / groups; ++head)
        f(row / down, row % down, column, head);
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(size)); }

  // The number of token l of a window in the map, or -1 where it is padding.
  Index token(Index b, Index window_row, Index window_column, Index l) const {
    const Index y = window_row * rows + l / columns, x = window_column * columns + l % columns;
    return y < height && x < width ? (b * height + y) * width + x : -1;
  }

  // Query (scaled), key and value of a head in one window.
  void read(const Array& qkv, const Array& bias, Index head, Index b, Index window_row,
            Index window_column, Matrix& query, Matrix& key, Matrix& value) const {
    const float* offset = bias.typed_data() + head * size;
    for (Index l = 0; l < length(); ++l) {
      const Index t = token(b, window_row, window_column, l);
      const float* x = t < 0 ? nullptr : qkv.typed_data() + t * 3 * channels + head * size;
      gather(x, offset, size, scale(), query.row(l));
      gather(x ? x + channels : x, offset + channels, size, 1, key.row(l));
      gather(x ? x + 2 * channels : x, offset + 2 * channels, size, 1, value.row(l));
    }
  }
};
constexpr Index kQueries = 24;  // rows of the score matrix that are held at once

ffi::Error window_attention(ffi::ThreadPool pool, Array qkv, Array bias, int64_t heads,
                            int64_t rows, int64_t columns, Result y) {
  prefer_large_pages(y);
  const Windows w(qkv, heads, rows, columns);
  const Index length = w.length(), size = w.size;
  parallel(pool, w.tasks(), [&](Index task) {
    Matrix query(length, size), key(length, size), keys(size, length), value(length, size);
    Matrix scores(kQueries, length), out(kQueries, size);
    w.for_each(task, [&](Index b, Index window_row, Index window_column, Index head) {
      w.read(qkv, bias, head, b, window_row, window_column, query, key, value);
      transpose(length, size, key, keys);
      for (Index first = 0; first < length; first += kQueries) {
        const Index count = std::min(kQueries, length - first);
        product<false>(count, length, size, query.row(first), query.stride, keys.row(0),
                       keys.stride, scores.row(0), scores.stride, false);
        for (Index i = 0; i < count; ++i) softmax(scores.row(i), length);
        multiply(count, size, length, scores, value, out);
        for (Index i = 0; i < count; ++i) {
          const Index token = w.token(b, window_row, window_column, first + i);
          if (token >= 0)
            scatter(out.row(i), size, 1, y->typed_data() + token * w.channels + head * size,
                    nullptr);
        }
      }
    });
  });
  return ffi::Error::Success();
}

ffi::Error window_attention_gradient(ffi::ThreadPool pool, Array qkv, Array bias, Array g,
                                     int64_t heads, int64_t rows, int64_t columns, Result dqkv,
                                     Result dbias) {
  prefer_large_pages(dqkv);
  const Windows w(qkv, heads, rows, columns);
  const Index length = w.length(), size = w.size, wide = 3 * w.channels;
  const Index parts = w.batch * w.down;
  std::vector<float> partial(parts * wide);
  parallel(pool, w.tasks(), [&](Index task) {
    Matrix query(length, size), key(length, size), keys(size, length), value(length, size);
    Matrix values(size, length), up(length, size);
    Matrix weights(kQueries, length), slopes(kQueries, length);
    Matrix dquery(kQueries, size), dkey(length, size), dvalue(length, size);
    w.for_each(task, [&](Index b, Index window_row, Index window_column, Index head) {
      float* total = partial.data() + task / w.groups * wide + head * size;
      w.read(qkv, bias, head, b, window_row, window_column, query, key, value);
      for (Index l = 0; l < length; ++l) {
        const Index token = w.token(b, window_row, window_column, l);
        const float* from =
            token < 0 ? nullptr : g.typed_data() + token * w.channels + head * size;
        for_vectors(size, [&](Index i, auto lanes) {
          store(up.row(l) + i, from ? load(from + i, lanes) : Vec{}, lanes);
        });
      }
      transpose(length, size, key, keys);
      transpose(length, size, value, values);
      for (Index first = 0; first < length; first += kQueries) {
        const Index count = std::min(kQueries, length - first);
        product<false>(count, length, size, query.row(first), query.stride, keys.row(0),
                       keys.stride, weights.row(0), weights.stride, false);
        product<false>(count, length, size, up.row(first), up.stride, values.row(0), values.stride,
                       slopes.row(0), slopes.stride, false);
        for (Index i = 0; i < count; ++i) {
          softmax(weights.row(i), length);
          softmax_gradient(weights.row(i), slopes.row(i), length);
        }
        product<true>(length, size, count, weights.row(0), weights.stride, up.row(first), up.stride,
                      dvalue.row(0), dvalue.stride, first > 0);
        product<true>(length, size, count, slopes.row(0), slopes.stride, query.row(first),
                      query.stride, dkey.row(0), dkey.stride, first > 0);
        multiply(count, size, length, slopes, key, dquery);
        for (Index i = 0; i < count; ++i) {
          const Index token = w.token(b, window_row, window_column, first + i);
          float* to = token < 0 ? nullptr : dqkv->typed_data() + token * wide + head * size;
          scatter(dquery.row(i), size, w.scale(), to, total);
        }
      }
      for (Index l = 0; l < length; ++l) {
        const Index token = w.token(b, window_row, window_column, l);
        float* to = token < 0 ? nullptr : dqkv->typed_data() + token * wide + head * size;
        scatter(dkey.row(l), size, 1, to ? to + w.channels : to, total + w.channels);
        scatter(dvalue.row(l), size, 1, to ? to + 2 * w.channels : to, total + 2 * w.channels);
      }
    });
  });
  add_up(pool, partial.data(), parts, wide, dbias->typed_data());
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Attention between channels
// ---------------------------------------------------------------------------------------------

constexpr Index kTokens = 64;  // gathered at once

// The qkv [B, N, 3, heads, size] of one image and head; a task.
struct Channels {
  Index batch, tokens, channels, heads, size;
  Channels(const Array& qkv, Index heads)
      : batch(qkv.dimensions()[0]),
        tokens(qkv.dimensions()[1]),
        channels(qkv.dimensions()[2] / 3),
        heads(heads),
        size(channels / heads) {}
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(size)); }

  // Part 0, 1 or 2 (query, key, value) of `count` tokens from `first` on, times `factor`.
  void read(const Array& qkv, const Array& bias, Index task, Index part, Index first, Index count,
            float factor, Matrix& out) const {
    const Index column = part * channels + task % heads * size;
    for (Index t = 0; t < count; ++t)
      gather(qkv.typed_data() + (task / heads * tokens + first + t) * 3 * channels + column,
             bias.typed_data() + column, size, factor, out.row(t));
  }

  // softmax((k / sqrt(size))^T v) of a task; `key` and `value` are room for kTokens.
  void weigh(const Array& qkv, const Array& bias, Index task, Matrix& key, Matrix& value,
             Matrix& block, Matrix& weights) const {
    for (Index t = 0; t < tokens; t += kTokens) {
      const Index count = std::min(kTokens, tokens - t);
      read(qkv, bias, task, 1, t, count, scale(), key);
      read(qkv, bias, task, 2, t, count, 1, value);
      add_block(size, size, count, key, value, block, weights);
    }
    for (Index i = 0; i < size; ++i) softmax(weights.row(i), size);
  }
};

ffi::Error channel_attention(ffi::ThreadPool pool, Array qkv, Array bias, int64_t heads, Result y) {
  prefer_large_pages(y);
  const Channels c(qkv, heads);
  const Index size = c.size;
  parallel(pool, c.batch * heads, [&](Index task) {
    Matrix first(kTokens, size), second(kTokens, size);
    Matrix block(size, size), weights(size, size), turned(size, size);
    c.weigh(qkv, bias, task, first, second, block, weights);
    transpose(size, size, weights, turned);
    for (Index t = 0; t < c.tokens; t += kTokens) {
      const Index count = std::min(kTokens, c.tokens - t);
      c.read(qkv, bias, task, 0, t, count, 1, first);
      multiply(count, size, size, first, turned, second);
      for (Index i = 0; i < count; ++i)
        scatter(second.row(i), size, 1,
                y->typed_data() + (task / heads * c.tokens + t + i) * c.channels +
                    task % heads * size,
                nullptr);
    }
  });
  return ffi::Error::Success();
}

ffi::Error channel_attention_gradient(ffi::ThreadPool pool, Array qkv, Array bias, Array g,
                                      int64_t heads, Result dqkv, Result dbias) {
  prefer_large_pages(dqkv);
  const Channels c(qkv, heads);
  const Index size = c.size, wide = 3 * c.channels;
  std::vector<float> partial(c.batch * wide);
  parallel(pool, c.batch * heads, [&](Index task) {
    const Index image = task / heads, column = task % heads * size;
    float* total = partial.data() + image * wide + column;
    Matrix query(kTokens, size), key(kTokens, size), value(kTokens, size), up(kTokens, size);
    Matrix block(size, size), weights(size, size), slopes(size, size), turned(size, size);
    Matrix block_total(1, size);
    const auto write = [&](Index t, Index count, Index part, float factor, Matrix& from) {
      block_total.clear();
      for (Index i = 0; i < count; ++i)
        scatter(from.row(i), size, factor,
                dqkv->typed_data() + (image * c.tokens + t + i) * wide + part * c.channels + column,
                block_total.row(0));
      scatter(block_total.row(0), size, 1, nullptr, total + part * c.channels);
    };
    c.weigh(qkv, bias, task, key, value, block, weights);
    for (Index t = 0; t < c.tokens; t += kTokens) {
      const Index count = std::min(kTokens, c.tokens - t);
      c.read(qkv, bias, task, 0, t, count, 1, query);
      for (Index i = 0; i < count; ++i)
        scatter(g.typed_data() + (image * c.tokens + t + i) * c.channels + column, size, 1,
                up.row(i), nullptr);
      add_block(size, size, count, up, query, block, slopes);
      multiply(count, size, size, up, weights, key);
      write(t, count, 0, 1, key);
    }
    for (Index i = 0; i < size; ++i) softmax_gradient(weights.row(i), slopes.row(i), size);
    transpose(size, size, slopes, turned);
    for (Index t = 0; t < c.tokens; t += kTokens) {
      const Index count = std::min(kTokens, c.tokens - t);
      c.read(qkv, bias, task, 1, t, count, c.scale(), key);
      c.read(qkv, bias, task, 2, t, count, 1, value);
      multiply(count, size, size, value, turned, query);
      write(t, count, 1, c.scale(), query);
      multiply(count, size, size, key, slopes, query);
      write(t, count, 2, 1, query);
    }
  });
  add_up(pool, partial.data(), c.batch, wide, dbias->typed_data());
  return ffi::Error::Success();
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// What native.py registers, under these names
// ---------------------------------------------------------------------------------------------

#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define ARGS2 Arg<Array>().Arg<Array>()
#define RETS2 Ret<Array>().Ret<Array>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm, layer_norm,
                              BIND.ARGS2.Arg<Array>().RemainingArgs().Attr<float>("epsilon")
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm_gradient, layer_norm_gradient,
                              BIND.ARGS2.ARGS2.Attr<float>("epsilon").RETS2.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_bias_gelu, bias_gelu,
                              BIND.ARGS2.RemainingArgs().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_bias_gelu_gradient, bias_gelu_gradient,
                              BIND.ARGS2.Arg<Array>().RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_residual_depthwise_conv2d, residual_depthwise_conv2d,
                              BIND.ARGS2.Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_residual_depthwise_conv2d_gradient,
                              residual_depthwise_conv2d_gradient,
                              BIND.ARGS2.ARGS2.RETS2.Ret<Array>());
#define INT(name) Attr<int64_t>(name)
#define CONVOLUTION INT("stride").INT("top").INT("left")
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_weight_gradient, weight_gradient,
                              BIND.ARGS2.CONVOLUTION.RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_conv2d, conv2d, BIND.ARGS2.CONVOLUTION.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_bias_relu_gradient, bias_relu_gradient, BIND.ARGS2.RETS2);
#define POOLING INT("left").INT("stride").INT("top").INT("window").Ret<Array>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_max_pool, max_pool, BIND.Arg<Array>().POOLING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_max_pool_gradient, max_pool_gradient,
                              BIND.ARGS2.Arg<Array>().POOLING);
#define WINDOWS INT("heads").INT("rows").INT("columns")
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_window_attention, window_attention,
                              BIND.ARGS2.WINDOWS.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_window_attention_gradient, window_attention_gradient,
                              BIND.ARGS2.Arg<Array>().WINDOWS.RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_channel_attention, channel_attention,
                              BIND.ARGS2.INT("heads").Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_channel_attention_gradient, channel_attention_gradient,
                              BIND.ARGS2.Arg<Array>().INT("heads").RETS2);
