"""`featurecache report`: the page is written again, and its path printed."""

import json

from tests.pipelines.test_page import put, results


def test_the_page_is_written_again(run, tmp_path):
    put(tmp_path, results())
    done = run("report", tmp_path)
    assert done.code == 0 and done.out == f"{tmp_path}/results.html\n" and not done.err
    first = (tmp_path / "results.html").read_bytes()
    assert json.loads(run("report", tmp_path, "--json").out) == {"page": str(tmp_path / "results.html")}
    assert (tmp_path / "results.html").read_bytes() == first


def test_a_folder_without_results_is_refused(run, tmp_path):
    done = run("report", tmp_path)
    assert done.code == 2 and "has no results.json" in done.err and "`featurecache run`" in done.err
