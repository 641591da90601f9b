// Native forms of the operations of glomjax.ops that XLA compiles badly for a CPU, of float32
// arrays.
//
// Called through jax.ffi (see native.py); what each computes is defined by its plain_* twin in a
// module beside it. Every sum is taken in an order that the shapes alone decide, never the number
// of threads, so that results are equal from run to run. NaN and infinity propagate: no fast-math.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <variant>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Index = int64_t;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

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
typedef uint32_t PairVec __attribute__((vector_size(4 * kLanes)));

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
inline Vec rectified(Vec v) { return v < 0 ? Vec{} : v; }  // a NaN stays
inline Index ceil_div(Index n, Index by) { return (n + by - 1) / by; }
inline Index round_up(Index n, Index by = kLanes) { return ceil_div(n, by) * by; }

// Two values of bfloat16, the first in the lower half: what products in bfloat16 take at once.
// Where the processor has no instruction for them, none are used.
enum class Pair : uint32_t {};

inline PairVec load(const Pair* p) {
  PairVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(Pair* p, PairVec v, Index n) { std::memcpy(p, &v, n * sizeof(Pair)); }
inline PairVec splat(Pair value) { return static_cast<uint32_t>(value) - PairVec{}; }
inline Vec multiply_add(Vec total, Vec a, Vec b) { return total + a * b; }
// Factors as a product in float32 takes them.
inline void convert(const float* from, Index n, float* to) {
  std::memcpy(to, from, n * sizeof(float));
}
#ifdef __AVX512BF16__
constexpr bool kBfloat16 = true;
using Operand = Pair;
inline Vec multiply_add(Vec total, PairVec a, PairVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
}
// Pairs of a value of each, rounded.
inline PairVec round_pairs(Vec low, Vec high) {
  alignas(64) static constexpr uint16_t kOrder[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                    21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                    11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh halves = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (PairVec)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)halves);
}
// n values side by side as pairs, an odd one with a 0.
inline void convert(const float* from, Index n, Pair* to) {
  for (Index i = 0; i < n; i += kLanes) {
    const Index count = std::min<Index>(kLanes, n - i);
    const Vec v = count == kLanes ? load(from + i) : load_some(from + i, count);
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to + i / 2, &halves, (count + 1) / 2 * sizeof(Pair));
  }
}
#else
constexpr bool kBfloat16 = false;
using Operand = float;
inline PairVec round_pairs(Vec, Vec) { return PairVec{}; }
#endif
template <typename T>
constexpr bool kPairs = std::is_same_v<T, Pair>;
// Elements that hold n values.
template <typename T>
constexpr Index units(Index n) {
  return kPairs<T> ? (n + 1) / 2 : n;
}

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

constexpr int kLineFloats = 16;  // of a line of the cache

// Begins at a line of the cache, so that no vector lies in two; what is not set is left as it is.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{kLineFloats * sizeof(float)};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  void construct(T*) {}
  void construct(T* p, T value) { *p = value; }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;
using Floats = Lines<float>;

// Asks Linux for large pages under a result, as NumPy does for its arrays: XLA gives a step fresh
// memory each time, and a fault for every 4 KiB of it takes as long as many an operation. Whole
// large pages, since what lies beside a result is mostly another one.
void prefer_large_pages(Result x) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  if (x->size_bytes() < kPage / 16) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x->typed_data()) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(x->typed_data()) + x->size_bytes();
  madvise(reinterpret_cast<void*>(begin), (end - begin + kPage - 1) / kPage * kPage, MADV_HUGEPAGE);
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
  parallel(pool, chunks(rows),
           [&](Index task) { body(task * kRows, std::min(rows, (task + 1) * kRows), task); });
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
    if (lanes != kLanes) centred = with_rest(centred, lanes, 0);
    squares += centred * centred;
  });
  return {mean, 1.0f / std::sqrt(sum(squares) / n + epsilon)};
}

// n values of a row with these moments, of which `scale` and `bias` are the parameters.
inline void normalise(const float* x, Moments m, const float* scale, const float* bias, Index n,
                      float* y) {
  for_vectors(n, [&](Index i, auto lanes) {
    const Vec normalised = (load(x + i, lanes) - m.mean) * m.inverse_std;
    store(y + i, normalised * load(scale + i, lanes) + load(bias + i, lanes), lanes);
  });
}

ffi::Error layer_norm(ffi::ThreadPool pool, Array x, Array scale, Array bias, float epsilon,
                      Result y) {
  prefer_large_pages(y);
  const Rows rows(x);
  parallel_rows(pool, rows.count, [&](Index first, Index end, Index) {
    for (Index r = first; r < end; ++r) {
      const float* in = x.typed_data() + r * rows.width;
      normalise(in, moments(in, rows.width, epsilon), scale.typed_data(), bias.typed_data(),
                rows.width, y->typed_data() + r * rows.width);
    }
  });
  return ffi::Error::Success();
}

// The gradients of the normalisation, and into y, where that is not null, its value again.
void layer_norm_backward(ffi::ThreadPool& pool, const Array& x, const Array& scale,
                         const Array& bias, const Array& g, float epsilon, Result& dx,
                         Result& dscale, Result& dbias, float* y) {
  prefer_large_pages(dx);
  const Rows rows(x);
  const Index n = rows.width, parts = chunks(rows.count);
  Floats scale_partial(parts * n, 0.0f), bias_partial(parts * n, 0.0f);
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
      if (y) normalise(in, m, scale.typed_data(), bias.typed_data(), n, y + r * n);
    }
  });
  add_up(pool, scale_partial.data(), parts, n, dscale->typed_data());
  add_up(pool, bias_partial.data(), parts, n, dbias->typed_data());
}

ffi::Error layer_norm_gradient(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array g,
                               float epsilon, Result dx, Result dscale, Result dbias) {
  layer_norm_backward(pool, x, scale, bias, g, epsilon, dx, dscale, dbias, nullptr);
  return ffi::Error::Success();
}

// g is the gradient of the normalised rows, which the weights' gradient needs again.
ffi::Error layer_norm_dense_gradient(ffi::ThreadPool pool, Array x, Array scale, Array bias,
                                     Array g, float epsilon, Result dx, Result dscale, Result dbias,
                                     Result y) {
  prefer_large_pages(y);
  layer_norm_backward(pool, x, scale, bias, g, epsilon, dx, dscale, dbias, y->typed_data());
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Bias and GELU or ReLU
// ---------------------------------------------------------------------------------------------

inline Vec normal_cdf(Vec z) { return 0.5f * (1.0f + error_function(z * 0.707106781f)); }

// dx [..., C] = f(offset in the array, column, lanes) and dbias [C] = its column sums.
template <typename F>
void with_column_sums(ffi::ThreadPool& pool, const Rows& rows, Result& dx, Result& dbias,
                      const F& f) {
  const Index n = rows.width, parts = chunks(rows.count);
  Floats partial(parts * n, 0.0f);
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

// From g, the gradient of y = GELU(x + bias), those of x and bias, and y, which the gradient of the
// weights that follow needs again.
ffi::Error gelu_dense_gradient(ffi::ThreadPool pool, Array x, Array bias, Array g, Result dx,
                               Result dbias, Result y) {
  prefer_large_pages(dx);
  prefer_large_pages(y);
  with_column_sums(pool, Rows(x), dx, dbias, [&](Index at, Index column, auto lanes) -> Vec {
    const Vec z = load(x.typed_data() + at, lanes) + load(bias.typed_data() + column, lanes);
    const Vec cdf = normal_cdf(z), density = 0.398942280f * exponential(-0.5f * z * z);
    store(y->typed_data() + at, z * cdf, lanes);
    return load(g.typed_data() + at, lanes) * (cdf + z * density);
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

ffi::Error residual_depthwise_conv2d_gradient(ffi::ThreadPool pool, Array x, Array kernel, Array,
                                              Array g, Result dx, Result dkernel, Result dbias) {
  prefer_large_pages(dx);
  constexpr Index kMapRows = 8;  // of one task
  const Map map(x);
  const Index n = map.channels, per_image = ceil_div(map.height, kMapRows);
  const Index parts = map.batch * per_image;
  // The gradient of x is the same operation on g with the filters turned by 180 degrees.
  Floats turned(9 * n), zeros(n, 0.0f);
  for (Index t = 0; t < 9; ++t)
    std::copy_n(kernel.typed_data() + (8 - t) * n, n, turned.data() + t * n);
  residual_depthwise(pool, map, g.typed_data(), turned.data(), zeros.data(), dx->typed_data());

  Floats kernel_partial(parts * 9 * n), bias_partial(parts * n);
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
  Floats values;
  Matrix(Index rows, Index columns) : stride(round_up(columns)), values(rows * stride, 0.0f) {}
  float* row(Index i) { return values.data() + i * stride; }
  void clear() { std::fill(values.begin(), values.end(), 0.0f); }
};

constexpr int kTileRows = kLanes == 16 ? 12 : 6;  // of a tile that the registers hold
constexpr int kTileColumns = 2 * kLanes;

// What a product sums over: `inner` elements side by side in a row of a, and again `step` elements
// on, `times` in all; the rows of b follow one another.
struct Inner {
  Index inner, times = 1, step = 0;
};

// Where a product goes: `columns` floats of rows that lie `stride` floats apart. What is there and
// `bias` are added to it, and it is rectified, where these are set.
struct Target {
  float* c;
  Index stride, columns;
  bool add = false;
  const float* bias = nullptr;
  bool relu = false;

  Target from(Index row, Index column) const {
    return {c + row * stride + column,   stride, columns - column, add,
            bias ? bias + column : bias, relu};
  }
  template <typename Lanes>
  void put(Index row, Index column, Vec v, Lanes lanes) const {
    float* at = c + row * stride + column;
    if (add) v += load(at, lanes);
    if (bias) v += load(bias + column, lanes);
    store(at, relu ? rectified(v) : v, lanes);
  }
};

// kM rows and kN vectors of a b, or a^T b, kept in registers over the inner extent: only if all
// loops over them are unrolled.
#define UNROLL _Pragma("GCC unroll 16")
template <bool kTransposed, int kM, int kN, typename T>
inline void tile(Inner over, const T* a, Index a_stride, const T* b, Index b_stride,
                 const Target& to) {
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN * kLanes; n += kLineFloats)
      __builtin_prefetch(to.c + m * to.stride + n, 1);
  Vec total[kM][kN];
  UNROLL for (int m = 0; m < kM; ++m) UNROLL for (int n = 0; n < kN; ++n) total[m][n] = Vec{};
  for (Index t = 0; t < over.times; ++t, a += over.step)
    for (Index k = 0; k < over.inner; ++k, b += b_stride) {
      decltype(load(b)) right[kN];
      UNROLL for (int n = 0; n < kN; ++n) right[n] = load(b + n * kLanes);
      UNROLL for (int m = 0; m < kM; ++m) {
        const auto left = splat(kTransposed ? a[k * a_stride + m] : a[m * a_stride + k]);
        UNROLL for (int n = 0; n < kN; ++n) total[m][n] = multiply_add(total[m][n], left, right[n]);
      }
    }
  const Index last = to.columns - (kN - 1) * kLanes;  // lanes of the last vector that count
  UNROLL for (int m = 0; m < kM; ++m) {
    UNROLL for (int n = 0; n < kN; ++n) {
      if (n + 1 < kN || last >= kLanes)
        to.put(m, n * kLanes, total[m][n], std::integral_constant<Index, kLanes>());
      else
        to.put(m, n * kLanes, total[m][n], last);
    }
  }
}

template <bool kTransposed, int kN, int kM = kTileRows, typename T>
inline void tile_of(Index rows, Inner over, const T* a, Index a_stride, const T* b, Index b_stride,
                    const Target& to) {
  if (rows == kM)
    tile<kTransposed, kM, kN>(over, a, a_stride, b, b_stride, to);
  else if constexpr (kM > 1)
    tile_of<kTransposed, kN, kM - 1>(rows, over, a, a_stride, b, b_stride, to);
}

// Tiles one below the other, of nearly equal heights: a low one would wait for its few sums.
template <bool kTransposed, int kN, typename T>
inline void column_of_tiles(Index rows, Inner over, const T* a, Index a_stride, const T* b,
                            Index b_stride, const Target& to) {
  const Index count = ceil_div(rows, kTileRows);
  for (Index t = 0; t < count; ++t) {
    const Index m = rows * t / count;
    tile_of<kTransposed, kN>(rows * (t + 1) / count - m, over, a + m * (kTransposed ? 1 : a_stride),
                             a_stride, b, b_stride, to.from(m, 0));
  }
}

// c [rows, columns] = a b, or += with `add`; a is [rows, inner], or with kTransposed its transpose
// [inner, rows]. All three reach to the end of their last vector.
template <bool kTransposed>
void product(Index rows, Index columns, Index inner, const float* a, Index a_stride, const float* b,
             Index b_stride, float* c, Index c_stride, bool add) {
  const Target to{c, c_stride, round_up(columns), add};
  Index n = 0;
  for (; n + kTileColumns <= to.columns; n += kTileColumns)
    column_of_tiles<kTransposed, 2>(rows, {inner}, a, a_stride, b + n, b_stride, to.from(0, n));
  if (n < columns)
    column_of_tiles<kTransposed, 1>(rows, {inner}, a, a_stride, b + n, b_stride, to.from(0, n));
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
// Minimal filtering
// ---------------------------------------------------------------------------------------------

// Winograd's F(2x2, 3x3) for 3x3 filters at stride 1 (Lavin and Gray 2016): y = A^T (G g G^T *
// B^T d B) A for a tile of 2 x 2 outputs y, the 4 x 4 pixels d under it and the filter g, with 16
// products per channel in place of 36. The gradient of g is G^T (B^T d B * A dy A^T) G. The 16
// elements of all that is transformed lie apart, so that sums over channels or tiles are products
// of matrices.
constexpr Index kLeastChannels = 32;  // of fewer, the transforms take too long
bool winograd_applies(const Array& kernel, Index stride) {
  const auto size = kernel.dimensions();
  return size[0] == 3 && size[1] == 3 && stride == 1 &&
         std::min(size[2], size[3]) >= kLeastChannels;
}

// The products of these matrices with vectors.
inline void times_bt(const Vec (&d)[4], Vec (&out)[4]) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[1] - d[3];
}
inline void times_g(const Vec (&g)[3], Vec (&out)[4]) {
  out[0] = g[0];
  out[1] = 0.5f * (g[0] + g[2] + g[1]);
  out[2] = 0.5f * (g[0] + g[2] - g[1]);
  out[3] = g[2];
}
inline void times_gt(const Vec (&u)[4], Vec (&out)[3]) {
  out[0] = u[0] + 0.5f * (u[1] + u[2]);
  out[1] = 0.5f * (u[1] - u[2]);
  out[2] = 0.5f * (u[1] + u[2]) + u[3];
}
inline void times_a(const Vec (&y)[2], Vec (&out)[4]) {
  out[0] = y[0];
  out[1] = y[0] + y[1];
  out[2] = y[0] - y[1];
  out[3] = -y[1];
}
inline void times_at(const Vec (&m)[4], Vec (&out)[2]) {
  out[0] = m[0] + m[1] + m[2];
  out[1] = m[1] - m[2] - m[3];
}

// B^T d B of n channels of the 4 x 4 pixels of x from (row, column) on, each of the 16 elements
// `next` floats after the last.
void transform_input(const Map& in, const float* x, Index n, Index b, Index row, Index column,
                     float* to, Index next) {
  const float* from[4][4];
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 4; ++j) {
      const bool inside =
          row + i >= 0 && row + i < in.height && column + j >= 0 && column + j < in.width;
      from[i][j] = inside ? x + in.at(b, row + i, column + j) : nullptr;
    }
  for_vectors(n, [&](Index c, auto lanes) {
    Vec rows[4][4];
    UNROLL for (int j = 0; j < 4; ++j) {
      Vec d[4], column[4];
      UNROLL for (int i = 0; i < 4; ++i) d[i] = from[i][j] ? load(from[i][j] + c, lanes) : Vec{};
      times_bt(d, column);
      UNROLL for (int i = 0; i < 4; ++i) rows[i][j] = column[i];
    }
    UNROLL for (int i = 0; i < 4; ++i) {
      Vec row[4];
      times_bt(rows[i], row);
      UNROLL for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * next + c, row[j], lanes);
    }
  });
}

// A dy A^T of n channels of the 2 x 2 outputs from (row, column) on.
void transform_gradient(const Map& out, const float* g, Index n, Index b, Index row, Index column,
                        float* to, Index next) {
  const bool below = row + 1 < out.height, right = column + 1 < out.width;
  const float* corner = g + out.at(b, row, column);
  const Index line = out.width * out.channels;
  for_vectors(n, [&](Index c, auto lanes) {
    Vec rows[4][2];
    UNROLL for (int k = 0; k < 2; ++k) {
      const bool inside = k == 0 || right;
      const float* from = corner + k * out.channels + c;
      const Vec y[2] = {inside ? load(from, lanes) : Vec{},
                        inside && below ? load(from + line, lanes) : Vec{}};
      Vec column[4];
      times_a(y, column);
      UNROLL for (int i = 0; i < 4; ++i) rows[i][k] = column[i];
    }
    UNROLL for (int i = 0; i < 4; ++i) {
      Vec row[4];
      times_a(rows[i], row);
      UNROLL for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * next + c, row[j], lanes);
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Gradients of the weights of dense layers and convolutions
// ---------------------------------------------------------------------------------------------

constexpr Index kBlock = 288;  // rows and columns at most of a block of the gradient, for a task
constexpr Index kBlocks = 12;  // enough for all threads: of fewer, positions are divided
constexpr Index kDepth = 128;  // positions that are summed at once
constexpr Index kAhead = 8;    // positions between what is read and what is asked for

// A block of positions x columns as panels of kWide columns, each [positions, kWide], the last one
// filled up with zeros. Products read it from one end to the other.
template <int kWide, typename T>
class Panels {
 public:
  explicit Panels(Index columns)
      : columns_(round_up(columns, kWide)),
        values_(columns_ / kWide * kStride, T{}),
        positions_(kPairs<T> ? 2 * columns_ : 0, 0.0f) {}

  T* panel(Index column) { return values_.data() + column / kWide * kStride; }

  // Columns first, first + 1, ... of position k, zeros where `from` is null. `next` floats later
  // lies what will be read soon.
  void write(Index k, Index first, const float* from, Index n, Index next) {
    for (Index i = 0; from && i < n; i += kLineFloats) __builtin_prefetch(from + next + i);
    if constexpr (kPairs<T>) {
      put(from, n, positions_.data() + k % 2 * columns_ + first);
    } else {
      while (n > 0) {
        const Index start = first % kWide;
        float* to = panel(first - start) + k * kWide;
        Index count = std::min(n, kWide - start);
        if (count < kWide)
          put(from, count, to + start);
        else  // whole panels, whose width the compiler knows
          for (count = 0; count + kWide <= n; count += kWide, to += kStride)
            put(from ? from + count : nullptr, kWide, to);
        first += count;
        n -= count;
        if (from) from += count;
      }
    }
  }

  // After the last column of position k; pairs are of two positions, the last maybe of one.
  void finish(Index k, bool last) {
    if constexpr (kPairs<T>) {
      const float *low = positions_.data(), *high = low + columns_;
      if (k % 2 == 0 && last) std::fill_n(positions_.data() + columns_, columns_, 0.0f);
      if (k % 2 == 0 && !last) return;
      for (Index column = 0; column < columns_; column += kWide)
        for_vectors(kWide, [&](Index i, auto lanes) {
          store(panel(column) + k / 2 * kWide + i,
                round_pairs(load(low + column + i, lanes), load(high + column + i, lanes)), lanes);
        });
    }
  }

 private:
  // Not a power of two: panels that a row is written to must not share a set of the cache.
  static constexpr Index kStride = kDepth * kWide + kLineFloats;

  static void put(const float* from, Index n, float* to) {
    if (from)
      std::memcpy(to, from, n * sizeof(float));
    else
      std::memset(to, 0, n * sizeof(float));
  }

  Index columns_;
  Lines<T> values_;
  Floats positions_;
};

// `weight_gradient` where minimal filtering applies. A task is a block of channels and outputs and a
// part of the tiles, of which kTiles are summed at once.
void winograd_weight_gradient(ffi::ThreadPool& pool, const Array& x, const Array& g, Index channel,
                              Index left, Index top, Result& dkernel, Result& dbias) {
  constexpr Index kSide = 96, kTiles = 32;
  const Map in(x), out(g);
  const Index channels = dkernel->dimensions()[2], outputs = dkernel->dimensions()[3];
  const Index tall = ceil_div(channels, ceil_div(channels, kSide));
  const Index broad = round_up(ceil_div(outputs, ceil_div(outputs, kSide)), kTileColumns);
  const Index down = ceil_div(channels, tall), across = ceil_div(outputs, broad);
  const Index in_row = ceil_div(out.width, 2), in_image = ceil_div(out.height, 2) * in_row;
  const Index tiles = out.batch * in_image, depths = ceil_div(tiles, kTiles);
  const Index blocks = down * across, parts = std::min(ceil_div(kBlocks, blocks), depths);
  const Index size = channels * outputs;
  Floats partial(parts * 16 * size), bias_partial(parts * outputs);
  parallel(pool, parts * blocks, [&](Index task) {
    const Index part = task / blocks;
    const Index row = task % blocks / across * tall, column = task % across * broad;
    const Index height = std::min(tall, channels - row), wide = std::min(broad, outputs - column);
    const Index x_stride = round_up(height) + kLineFloats, g_stride = broad + kLineFloats;
    Floats pixels(16 * kTiles * x_stride), slopes(16 * kTiles * g_stride, 0.0f);
    Matrix total(16 * height, broad), column_sums(1, wide);
    const Index end = std::min(tiles, depths * (part + 1) / parts * kTiles);
    for (Index first = depths * part / parts * kTiles; first < end; first += kTiles) {
      const Index count = std::min(kTiles, end - first);
      Matrix sums(1, wide);
      for (Index t = 0; t < count; ++t) {
        const Index b = (first + t) / in_image, y = (first + t) % in_image / in_row * 2;
        const Index at = (first + t) % in_row * 2;
        transform_input(in, x.typed_data() + row, height, b, y - top, at - left,
                        pixels.data() + t * x_stride, kTiles * x_stride);
        float* slope = slopes.data() + t * g_stride;
        transform_gradient(out, g.typed_data() + channel + column, wide, b, y, at, slope,
                           kTiles * g_stride);
        // The sixth element is the sum of the four.
        if (row == 0) scatter(slope + 5 * kTiles * g_stride, wide, 1, nullptr, sums.row(0));
      }
      if (row == 0) scatter(sums.row(0), wide, 1, nullptr, column_sums.row(0));
      for (Index f = 0; f < 16; ++f)
        for (Index j = 0; j < wide; j += kTileColumns)
          column_of_tiles<true, 2>(height, {count}, pixels.data() + f * kTiles * x_stride, x_stride,
                                   slopes.data() + f * kTiles * g_stride + j, g_stride,
                                   {total.row(f * height) + j, total.stride, kTileColumns, true});
    }
    for (Index i = 0; i < 16 * height; ++i)
      std::copy_n(
          total.row(i), wide,
          partial.data() + (part * 16 + i / height) * size + (row + i % height) * outputs + column);
    if (row == 0)
      std::copy_n(column_sums.row(0), wide, bias_partial.data() + part * outputs + column);
  });
  parallel(pool, channels, [&](Index c) {
    for_vectors(outputs, [&](Index j, auto lanes) {
      Vec rows[3][4];  // G^T u
      for (int k = 0; k < 4; ++k) {
        Vec u[4]{};
        for (Index part = 0; part < parts; ++part)
          for (int i = 0; i < 4; ++i)
            u[i] += load(partial.data() + (part * 16 + 4 * i + k) * size + c * outputs + j, lanes);
        Vec column[3];
        times_gt(u, column);
        for (int i = 0; i < 3; ++i) rows[i][k] = column[i];
      }
      for (int i = 0; i < 3; ++i) {
        Vec row[3];
        times_gt(rows[i], row);
        for (int k = 0; k < 3; ++k)
          store(dkernel->typed_data() + (3 * i + k) * size + c * outputs + j, row[k], lanes);
      }
    });
  });
  add_up(pool, bias_partial.data(), parts, outputs, dbias->typed_data());
}

// dkernel [h, w, I, O] of a correlation of x [B, H, W, I] at a stride, after `top` and `left` rows
// and columns of zeros, and dbias [O], from the gradient of its output: the channels from `channel`
// on of g [B, H', W', ..]. A dense layer is one of 1x1 filters.
template <typename T>
void direct_weight_gradient(ffi::ThreadPool& pool, const Array& x, const Array& g, Index channel,
                            Index left, Index stride, Index top, Result& dkernel, Result& dbias) {
  const Map in(x), out(g);
  const Index filter_height = dkernel->dimensions()[0], filter_width = dkernel->dimensions()[1];
  const Index inner = filter_width * in.channels;
  const Index rows = filter_height * inner;  // of dkernel as a matrix
  const Index columns = dkernel->dimensions()[3];
  const Index positions = out.batch * out.height * out.width;
  // Blocks of nearly equal size.
  const Index tall = round_up(ceil_div(rows, ceil_div(rows, kBlock)), kTileRows);
  const Index broad = round_up(ceil_div(columns, ceil_div(columns, kBlock)), kTileColumns);
  const Index down = ceil_div(rows, tall), across = ceil_div(columns, broad);
  const Index blocks = down * across, depths = ceil_div(positions, kDepth);
  const Index parts =
      blocks < kBlocks ? std::max<Index>(1, std::min(ceil_div(kTasks, blocks), depths)) : 1;
  Floats partial(parts > 1 ? parts * rows * columns : 0), bias_partial(parts * columns);
  float* sums_of_parts = parts > 1 ? partial.data() : dkernel->typed_data();

  parallel(pool, parts * blocks, [&](Index task) {
    const Index part = task / blocks;
    const Index row = task % blocks / across * tall, column = task % across * broad;
    const Index height = std::min(tall, rows - row), wide = std::min(broad, columns - column);
    Panels<kTileRows, T> patches(height);
    Panels<kTileColumns, T> gradients(wide);
    Matrix total(round_up(height, kTileRows), round_up(wide, kTileColumns));
    Matrix column_sums(1, wide);
    const Index end = depths * (part + 1) / parts * kDepth;
    for (Index first = depths * part / parts * kDepth; first < end; first += kDepth) {
      const Index count = std::min(kDepth, positions - first);
      Matrix sums(1, wide);
      for (Index k = 0; k < count; ++k) {
        const Index position = first + k, b = position / (out.height * out.width);
        const Index y = position / out.width % out.height, at = position % out.width;
        const float* up = g.typed_data() + position * out.channels + channel + column;
        gradients.write(k, 0, up, wide, kAhead * out.channels);
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
        patches.finish(k, k + 1 == count);
        gradients.finish(k, k + 1 == count);
      }
      if (row == 0) scatter(sums.row(0), wide, 1, nullptr, column_sums.row(0));
      for (Index j = 0; j < wide; j += kTileColumns)
        for (Index i = 0; i < height; i += kTileRows)
          tile<true, kTileRows, 2>({units<T>(count)}, patches.panel(i), kTileRows,
                                   gradients.panel(j), kTileColumns,
                                   {total.row(i) + j, total.stride, kTileColumns, true});
    }
    for (Index i = 0; i < height; ++i)
      std::copy_n(total.row(i), wide, sums_of_parts + (part * rows + row + i) * columns + column);
    if (row == 0)
      std::copy_n(column_sums.row(0), wide, bias_partial.data() + part * columns + column);
  });
  if (parts > 1) add_up(pool, partial.data(), parts, rows * columns, dkernel->typed_data());
  add_up(pool, bias_partial.data(), parts, columns, dbias->typed_data());
}

ffi::Error weight_gradient(ffi::ThreadPool pool, Array x, Array g, bool bfloat16, int64_t channel,
                           int64_t left, int64_t stride, int64_t top, Result dkernel,
                           Result dbias) {
  if (winograd_applies(*dkernel, stride))
    winograd_weight_gradient(pool, x, g, channel, left, top, dkernel, dbias);
  else if (kBfloat16 && bfloat16)
    direct_weight_gradient<Operand>(pool, x, g, channel, left, stride, top, dkernel, dbias);
  else
    direct_weight_gradient<float>(pool, x, g, channel, left, stride, top, dkernel, dbias);
  return ffi::Error::Success();
}

// ---------------------------------------------------------------------------------------------
// Convolutions and dense layers
// ---------------------------------------------------------------------------------------------

constexpr Index kPositions = 96;  // of the output, at least, that a task reads the weights for
constexpr Index kSummed = 512;    // products that are added up at once, where there are many

// Weights [depth, outputs] in panels of columns, the last one maybe half as wide: each [depth, its
// columns], filled up with zeros, which products read from one end to the other.
template <typename T>
struct Weights {
  Index depth, outputs, panels;  // depth in elements
  Lines<T> values;

  Weights(Index depth, Index outputs)
      : depth(depth),
        outputs(outputs),
        panels(ceil_div(outputs, kTileColumns)),
        values(panels * kTileColumns * depth) {}
  // `from` is [rows, outputs], or the transpose of that.
  Weights(ffi::ThreadPool& pool, const float* from, Index rows, Index outputs, bool transposed)
      : Weights(units<T>(rows), outputs) {
    // Read and written in blocks that are a line of the cache wide, so that few pages are open.
    parallel(pool, transposed ? panels : ceil_div(rows, kLineFloats), [&](Index task) {
      Floats turned(transposed ? kLineFloats * kTileColumns : 0);
      if (transposed)
        for (Index k = 0; k < rows; k += kLineFloats) {
          const Index end = std::min(rows, k + kLineFloats), first = task * kTileColumns;
          const Index n = std::min(columns(task), outputs - first);
          for (Index i = k; i < end; ++i)
            for (Index j = 0; j < n; ++j)
              turned[(i - k) * kTileColumns + j] = from[(first + j) * rows + i];
          pack(turned.data(), kTileColumns, task, k, end);
        }
      else
        for (Index panel = 0; panel < panels; ++panel) {
          const Index k = task * kLineFloats;
          pack(from + k * outputs + panel * kTileColumns, outputs, panel, k,
               std::min(rows, k + kLineFloats));
        }
    });
  }
  // Rows k, an even one, to `end` of a panel, `stride` floats apart.
  void pack(const float* from, Index stride, Index panel, Index k, Index end) {
    const Index wide = columns(panel), n = std::min(wide, outputs - panel * kTileColumns);
    for (constexpr Index kStep = kPairs<T> ? 2 : 1; k < end; k += kStep, from += kStep * stride) {
      T* to = at(panel, units<T>(k));
      for_vectors(n, [&](Index j, auto lanes) {
        const Vec first = load(from + j, lanes);
        if constexpr (kPairs<T>)
          store(to + j, round_pairs(first, k + 1 < end ? load(from + stride + j, lanes) : Vec{}),
                lanes);
        else
          store(to + j, first, lanes);
      });
      std::fill(to + n, to + wide, T{});
    }
  }
  Index offset(Index panel, Index k) const {
    return panel * kTileColumns * depth + k * columns(panel);
  }
  T* at(Index panel, Index k) { return values.data() + offset(panel, k); }
  Index columns(Index panel) const {
    return outputs - panel * kTileColumns > kLanes ? kTileColumns : kLanes;
  }

  // rows of `to` = a times the weights from the kth on: those of a panel, in their place.
  void multiply(Index panel, Index rows, Index k, Inner over, const T* a, Index a_stride,
                const Target& to) const {
    multiply_panel(panel, rows, k, over, a, a_stride, to.from(0, panel * kTileColumns));
  }
  // The same, `to` being the panel's place.
  void multiply_panel(Index panel, Index rows, Index k, Inner over, const T* a, Index a_stride,
                      const Target& to) const {
    const Index wide = columns(panel);
    const T* b = values.data() + offset(panel, k);
    (wide == kTileColumns ? column_of_tiles<false, 2, T>
                          : column_of_tiles<false, 1, T>)(rows, over, a, a_stride, b, wide, to);
  }
};

// A correlation of some channels of x with filters [h, w, I, O], after `top` and `left` rows and
// columns of zeros, into the channels from `output` on of y; a task is some rows of an image. Of
// pairs, channels must be an even number.
template <typename T>
class Convolution {
 public:
  Convolution(ffi::ThreadPool& pool, const Array& x, const Array& kernel, const Array& bias,
              Index stride, Index top, Index left, Index channel, Map out, Index output)
      : in_(x),
        out_(out),
        height_(kernel.dimensions()[0]),
        width_(kernel.dimensions()[1]),
        channels_(kernel.dimensions()[2]),
        stride_(stride),
        top_(top),
        left_(left),
        output_(output),
        rows_(std::min(out.height, ceil_div(kPositions, out.width))),
        x_(x.typed_data() + channel),
        bias_(bias.typed_data()),
        weights_(pool, kernel.typed_data(), height_ * width_ * channels_, kernel.dimensions()[3],
                 false) {}

  Index tasks() const { return out_.batch * ceil_div(out_.height, rows_); }

  void run(Index task, bool relu, float* y) const {
    const Index groups = ceil_div(out_.height, rows_);
    const Index b = task / groups, first = task % groups * rows_;
    const Index count = std::min(out_.height, first + rows_) - first;
    // Where filters do not overlap, all positions follow one another.
    const bool flat = height_ * width_ == 1 && stride_ == 1 && top_ == 0 && left_ == 0 &&
                      in_.width == out_.width && in_.height >= out_.height;
    const Index runs = flat ? 1 : count, length = flat ? count * out_.width : out_.width;
    const Index line = units<T>(((out_.width - 1) * stride_ + width_) * channels_);
    // What these rows read is copied, with its zeros, unless it can be read where it is.
    Lines<T> padded;
    const T* patches = nullptr;
    if constexpr (!kPairs<T>)
      patches = flat && in_.channels == channels_ ? x_ + in_.at(b, first, 0) : nullptr;
    if (!patches) {
      padded = read(b, first * stride_ - top_, (count - 1) * stride_ + height_, line);
      patches = padded.data();
    }
    const Index inner = units<T>(width_ * channels_);
    const Index together = std::max<Index>(1, units<T>(kSummed) / inner);
    for (Index panel = 0; panel < weights_.panels; ++panel)
      for (Index run = 0; run < runs; ++run)
        for (Index i = 0; i < height_; i += together) {  // rows of the filter
          const Index times = std::min(together, height_ - i);
          const bool last = i + times == height_;
          weights_.multiply(panel, length, i * inner, {inner, times, line},
                            patches + (run * stride_ + i) * line, units<T>(stride_ * channels_),
                            {y + out_.at(b, first + run, 0) + output_, out_.channels,
                             weights_.outputs, i > 0, last ? bias_ : nullptr, last && relu});
        }
  }

 private:
  // `count` rows of x from one on, which may lie outside, `line` elements each with their zeros.
  Lines<T> read(Index b, Index first, Index count, Index line) const {
    Lines<T> padded(count * line);
    const Index width = (out_.width - 1) * stride_ + width_;
    const Index begin = std::clamp<Index>(left_, 0, width);
    const Index end = std::clamp(in_.width + left_, begin, width);
    for (Index r = 0; r < count; ++r) {
      const Index row = first + r;
      T* to = padded.data() + r * line;
      if (row < 0 || row >= in_.height) {
        std::fill_n(to, line, T{});
        continue;
      }
      const float* from = x_ + in_.at(b, row, begin - left_);
      std::fill(to, to + units<T>(begin * channels_), T{});
      if (channels_ == in_.channels)
        convert(from, (end - begin) * channels_, to + units<T>(begin * channels_));
      else
        for (Index i = begin; i < end; ++i, from += in_.channels)
          convert(from, channels_, to + units<T>(i * channels_));
      std::fill(to + units<T>(end * channels_), to + line, T{});
    }
    return padded;
  }

  Map in_, out_;
  Index height_, width_, channels_, stride_, top_, left_, output_, rows_;
  const float* x_;
  const float* bias_;
  Weights<T> weights_;
};

// The same for 3x3 filters at stride 1 by minimal filtering. A task is some tiles of an image.
class WinogradConvolution {
 public:
  WinogradConvolution(ffi::ThreadPool& pool, const Array& x, const Array& kernel, const Array& bias,
                      Index top, Index left, Index channel, Map out, Index output)
      : in_(x),
        out_(out),
        channels_(kernel.dimensions()[2]),
        top_(top),
        left_(left),
        output_(output),
        down_(ceil_div(out.height, 2)),
        across_(ceil_div(out.width, 2)),
        tiles_(std::clamp(kValues / channels_ / kTileRows, Index{1}, Index{8}) * kTileRows),
        x_(x.typed_data() + channel),
        bias_(bias.typed_data()),
        weights_(16 * channels_, kernel.dimensions()[3]) {
    const float* filters = kernel.typed_data();
    const Index outputs = weights_.outputs;
    parallel(pool, channels_, [&](Index c) {
      for (Index panel = 0; panel < weights_.panels; ++panel) {
        const Index first = panel * kTileColumns, wide = weights_.columns(panel);
        const Index n = std::min(wide, outputs - first);
        for_vectors(n, [&](Index j, auto lanes) {
          Vec rows[4][3];  // G g
          for (int k = 0; k < 3; ++k) {
            Vec g[3];
            for (int i = 0; i < 3; ++i)
              g[i] = load(filters + ((i * 3 + k) * channels_ + c) * outputs + first + j, lanes);
            Vec column[4];
            times_g(g, column);
            for (int i = 0; i < 4; ++i) rows[i][k] = column[i];
          }
          for (int i = 0; i < 4; ++i) {
            Vec u[4];
            times_g(rows[i], u);
            for (int k = 0; k < 4; ++k)
              store(weights_.at(panel, (4 * i + k) * channels_ + c) + j, u[k], lanes);
          }
        });
        for (int f = 0; f < 16; ++f)
          std::fill(weights_.at(panel, f * channels_ + c) + n,
                    weights_.at(panel, f * channels_ + c) + wide, 0.0f);
      }
    });
  }

  Index tasks() const { return out_.batch * blocks(); }

  void run(Index task, bool relu, float* y) const {
    const Index b = task / blocks(), block = task % blocks(), all = down_ * across_;
    const Index first = all * block / blocks(), count = all * (block + 1) / blocks() - first;
    const Index stride = round_up(channels_) + kLineFloats;  // rows must not share a set
    Floats pixels(16 * count * stride), products(16 * count * kTileColumns);
    for (Index t = 0; t < count; ++t)
      transform_input(in_, x_, channels_, b, (first + t) / across_ * 2 - top_,
                      (first + t) % across_ * 2 - left_, pixels.data() + t * stride,
                      count * stride);
    for (Index panel = 0; panel < weights_.panels; ++panel) {
      for (Index f = 0; f < 16; ++f)
        weights_.multiply_panel(
            panel, count, f * channels_, {channels_}, pixels.data() + f * count * stride, stride,
            {products.data() + f * count * kTileColumns, kTileColumns, weights_.columns(panel)});
      const Index column = panel * kTileColumns;
      const Index n = std::min(weights_.columns(panel), weights_.outputs - column);
      for (Index t = 0; t < count; ++t)
        write(b, (first + t) / across_ * 2, (first + t) % across_ * 2, column, n, relu,
              products.data() + t * kTileColumns, count * kTileColumns, y);
    }
  }

 private:
  static constexpr Index kValues = 9216;  // of each of the 16 at once, so that the cache holds them

  Index blocks() const { return ceil_div(down_ * across_, tiles_); }

  // n outputs from one on of the 2 x 2 positions A^T m A from (row, column) on.
  void write(Index b, Index row, Index column, Index output, Index n, bool relu, const float* from,
             Index next, float* y) const {
    for_vectors(n, [&](Index j, auto lanes) {
      Vec rows[2][4];
      UNROLL for (int k = 0; k < 4; ++k) {
        Vec m[4];
        UNROLL for (int i = 0; i < 4; ++i) m[i] = load(from + (4 * i + k) * next + j);
        Vec column[2];
        times_at(m, column);
        UNROLL for (int i = 0; i < 2; ++i) rows[i][k] = column[i];
      }
      const Vec offset = load(bias_ + output + j, lanes);
      UNROLL for (int i = 0; i < 2; ++i) {
        Vec values[2];
        times_at(rows[i], values);
        UNROLL for (int k = 0; k < 2; ++k) {
          const Vec v = values[k] + offset;
          if (row + i < out_.height && column + k < out_.width)
            store(y + out_.at(b, row + i, column + k) + output_ + output + j,
                  relu ? rectified(v) : v, lanes);
        }
      }
    });
  }

  Map in_, out_;
  Index channels_, top_, left_, output_, down_, across_, tiles_;
  const float* x_;
  const float* bias_;
  Weights<float> weights_;
};

// y [B, H', W', ..]: convolutions at one stride, each of its own x [B, H, W, ..] from a channel on,
// with filters and bias [O]; their outputs side by side, rectified with `relu`.
ffi::Error conv2d(ffi::ThreadPool pool, ffi::RemainingArgs args, bool bfloat16,
                  ffi::Span<const int64_t> channel, ffi::Span<const int64_t> left, bool relu,
                  int64_t stride, ffi::Span<const int64_t> top, Result y) {
  if (y->element_count() == 0) return ffi::Error::Success();
  prefer_large_pages(y);
  std::vector<std::variant<Convolution<float>, Convolution<Operand>, WinogradConvolution>>
      convolutions;
  std::vector<Index> ends{0};  // of the tasks of each
  Index output = 0;
  for (size_t i = 0; 3 * i < args.size(); ++i) {
    const auto x = args.get<Array>(3 * i), kernel = args.get<Array>(3 * i + 1);
    const auto bias = args.get<Array>(3 * i + 2);
    for (const auto* array : {&x, &kernel, &bias})
      if (array->has_error()) return array->error();
    const auto add = [&](auto index, auto... geometry) {
      convolutions.emplace_back(index, pool, *x, *kernel, *bias, geometry..., top[i], left[i],
                                channel[i], Map(*y), output);
    };
    if (winograd_applies(*kernel, stride))
      add(std::in_place_index<2>);
    else if (kBfloat16 && bfloat16 && kernel->dimensions()[2] % 2 == 0)
      add(std::in_place_index<1>, stride);
    else
      add(std::in_place_index<0>, stride);
    output += kernel->dimensions()[3];
    ends.push_back(ends.back() +
                   std::visit([](const auto& c) { return c.tasks(); }, convolutions.back()));
  }
  parallel(pool, ends.back(), [&](Index task) {
    const auto i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin() - 1;
    std::visit([&](const auto& c) { c.run(task - ends[i], relu, y->typed_data()); },
               convolutions[i]);
  });
  return ffi::Error::Success();
}

// y [.., O] = f(x) [.., I] times kernel [I, O], or with `transposed` [O, I], + bias, if that is not
// null. read(row, k, n, to) writes n values of a row of f(x), from the kth on.
template <typename T, typename Read>
void product_of(ffi::ThreadPool& pool, const Array& x, const Array& kernel, bool transposed,
                const float* bias, Result& y, const Read& read) {
  prefer_large_pages(y);
  const Rows in(x), out(*y);
  const Weights<T> weights(pool, kernel.typed_data(), in.width, out.width, transposed);
  const Index threads = std::max<Index>(1, pool.num_threads());
  const Index tasks = std::min(in.count, round_up(ceil_div(in.count, kPositions), threads));
  parallel(pool, tasks, [&](Index task) {
    const Index first = in.count * task / tasks, count = in.count * (task + 1) / tasks - first;
    // Not a power of two: rows must not share a set of the cache.
    const Index stride = round_up(units<T>(kSummed)) + kLineFloats;
    Lines<T> a(count * stride);
    Floats values(kSummed);
    for (Index k = 0; k < in.width; k += kSummed) {
      const Index depth = std::min(kSummed, in.width - k);
      for (Index r = 0; r < count; ++r) {
        T* to = a.data() + r * stride;
        if constexpr (kPairs<T>) {
          read(first + r, k, depth, values.data());
          convert(values.data(), depth, to);
        } else {
          read(first + r, k, depth, to);
        }
      }
      for (Index panel = 0; panel < weights.panels; ++panel)
        weights.multiply(panel, count, units<T>(k), {units<T>(depth)}, a.data(), stride,
                         {y->typed_data() + first * out.width, out.width, out.width, k > 0,
                          k + depth == in.width ? bias : nullptr});
    }
  });
}

template <typename Read>
void dense_of(ffi::ThreadPool& pool, const Array& x, const Array& kernel, bool transposed,
              const float* bias, bool bfloat16, Result& y, const Read& read) {
  (kBfloat16 && bfloat16 ? product_of<Operand, Read>
                         : product_of<float, Read>)(pool, x, kernel, transposed, bias, y, read);
}

// Rows of x as they are.
auto rows_of(const Array& x) {
  return [from = x.typed_data(), width = Rows(x).width](Index row, Index k, Index n, float* to) {
    std::copy_n(from + row * width + k, n, to);
  };
}

ffi::Error dense(ffi::ThreadPool pool, Array x, Array kernel, Array bias, bool bfloat16, Result y) {
  dense_of(pool, x, kernel, false, bias.typed_data(), bfloat16, y, rows_of(x));
  return ffi::Error::Success();
}

// The gradient of a dense layer's input from g, that of its output.
ffi::Error dense_input_gradient(ffi::ThreadPool pool, Array g, Array kernel, bool bfloat16,
                                Result dx) {
  dense_of(pool, g, kernel, true, nullptr, bfloat16, dx, rows_of(g));
  return ffi::Error::Success();
}

ffi::Error layer_norm_dense(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array kernel,
                            bool bfloat16, float epsilon, Result y) {
  const Index width = Rows(x).width;
  dense_of(pool, x, kernel, false, nullptr, bfloat16, y,
           [&](Index row, Index k, Index n, float* to) {
             const float* from = x.typed_data() + row * width;
             normalise(from + k, moments(from, width, epsilon), scale.typed_data() + k,
                       bias.typed_data() + k, n, to);
           });
  return ffi::Error::Success();
}

ffi::Error gelu_dense(ffi::ThreadPool pool, Array x, Array x_bias, Array kernel, Array bias,
                      bool bfloat16, Result y) {
  const Index width = Rows(x).width;
  dense_of(pool, x, kernel, false, bias.typed_data(), bfloat16, y,
           [&](Index row, Index k, Index n, float* to) {
             const float* from = x.typed_data() + row * width + k;
             for_vectors(n, [&](Index i, auto lanes) {
               const Vec z = load(from + i, lanes) + load(x_bias.typed_data() + k + i, lanes);
               store(to + i, z * normal_cdf(z), lanes);
             });
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
  Floats partial(parts * wide, 0.0f);
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
        const float* from = token < 0 ? nullptr : g.typed_data() + token * w.channels + head * size;
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
        scatter(
            second.row(i), size, 1,
            y->typed_data() + (task / heads * c.tokens + t + i) * c.channels + task % heads * size,
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
  Floats partial(c.batch * wide, 0.0f);
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
#define ARGS3 ARGS2.Arg<Array>()
#define ARGS4 ARGS2.ARGS2
#define RETS2 Ret<Array>().Ret<Array>()
#define RETS3 RETS2.Ret<Array>()
#define INT(name) Attr<int64_t>(name)
#define INTS(name) Attr<ffi::Span<const int64_t>>(name)
#define EPSILON Attr<float>("epsilon")
#define BFLOAT16 Attr<bool>("bfloat16")
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm, layer_norm, BIND.ARGS3.EPSILON.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm_gradient, layer_norm_gradient,
                              BIND.ARGS4.EPSILON.RETS3);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_bias_relu_gradient, bias_relu_gradient, BIND.ARGS2.RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_residual_depthwise_conv2d, residual_depthwise_conv2d,
                              BIND.ARGS3.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_residual_depthwise_conv2d_gradient,
                              residual_depthwise_conv2d_gradient, BIND.ARGS4.RETS3);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    glomjax_weight_gradient, weight_gradient,
    BIND.ARGS2.BFLOAT16.INT("channel").INT("left").INT("stride").INT("top").RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_conv2d, conv2d,
                              BIND.RemainingArgs()
                                  .BFLOAT16.INTS("channel")
                                  .INTS("left")
                                  .Attr<bool>("relu")
                                  .INT("stride")
                                  .INTS("top")
                                  .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_dense, dense, BIND.ARGS3.BFLOAT16.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_dense_input_gradient, dense_input_gradient,
                              BIND.ARGS2.BFLOAT16.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm_dense, layer_norm_dense,
                              BIND.ARGS4.BFLOAT16.EPSILON.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_layer_norm_dense_gradient, layer_norm_dense_gradient,
                              BIND.ARGS4.EPSILON.RETS2.RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_gelu_dense, gelu_dense, BIND.ARGS4.BFLOAT16.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_gelu_dense_gradient, gelu_dense_gradient, BIND.ARGS3.RETS3);
#define POOLING INT("left").INT("stride").INT("top").INT("window").Ret<Array>()
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_max_pool, max_pool, BIND.Arg<Array>().POOLING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_max_pool_gradient, max_pool_gradient, BIND.ARGS3.POOLING);
#define WINDOWS INT("heads").INT("rows").INT("columns")
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_window_attention, window_attention,
                              BIND.ARGS2.WINDOWS.Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_window_attention_gradient, window_attention_gradient,
                              BIND.ARGS3.WINDOWS.RETS2);
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_channel_attention, channel_attention,
                              BIND.ARGS2.INT("heads").Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(glomjax_channel_attention_gradient, channel_attention_gradient,
                              BIND.ARGS3.INT("heads").RETS2);

// Whether products in bfloat16 are faster here than in float32.
extern "C" bool glomjax_bfloat16() { return kBfloat16; }
