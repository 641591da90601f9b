"""What a version is called in the package, its changelog and its citation."""

import pathlib
import re

import yaml

import glomjax

ROOT = pathlib.Path(glomjax.__file__).parents[1]
# (version, date) of each released one, the newest first.
RELEASES = re.findall(r"^## (\d\S*) - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def test_package_changelog_and_citation_have_one_version():
    cited = citation()
    assert (str(cited["version"]), str(cited["date-released"])) == RELEASES[0]
    assert glomjax.__version__ == RELEASES[0][0]


def test_the_changelog_begins_with_the_newest():
    assert sorted(RELEASES, key=lambda release: release[1], reverse=True) == RELEASES
    assert len(RELEASES) >= 2


def test_the_citation_is_one_of_software_and_names_each_paper_once():
    cited = citation()
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    papers = cited["references"]
    for paper in papers:
        assert {"type", "title", "authors", "year"} <= set(paper)
        # Without quotes, a title with a colon and a blank would not be a text.
        assert all(isinstance(paper[key], str) for key in ("type", "title"))
    assert len({paper["title"] for paper in papers}) == len(papers)
