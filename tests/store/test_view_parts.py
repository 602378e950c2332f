"""Parts over different views, read as if they were one."""

import numpy as np
import pytest

from featurecache.errors import IncompleteError, UsageError
from featurecache.store.part_reader import PartReader
from featurecache.store.view_parts import ViewParts
from featurecache.store.writer import create_cache
from tests.store.small_parts import teacher_part, write_part

ROWS = 1100
RANGES = ((0, 2), (2, 5), (5, 6))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Three parts over six views, in no order, and the values of all, (views, rows, dim)."""
    objects = create_cache(tmp_path_factory.mktemp("parts") / "cache", source={})
    specs = [teacher_part(ROWS, name=f"vit.v{views[0]}", views=views) for views in RANGES]
    values = np.concatenate([write_part(objects, spec, seed=spec.views[0])["embedding"] for spec in specs])
    return ViewParts([PartReader(objects, spec) for spec in (specs[2], specs[0], specs[1])]), values


@pytest.fixture(params=[0, 1, 777])
def at(request):
    """Rows and a view of each, in no order, with repetitions."""
    rng = np.random.default_rng(request.param)
    return rng.integers(0, ROWS, request.param), rng.integers(0, 6, request.param)


def test_each_row_is_read_in_its_own_view(parts, at):
    joined, values = parts
    rows, views = at
    array = joined.part.array("embedding")
    assert joined.take(array, rows, view=views).tobytes() == values[views, rows].tobytes()
    out = np.full((len(rows), 4), 7, np.float16)
    assert joined.take(array, rows, view=views, out=out) is out and out.tobytes() == values[views, rows].tobytes()
    joined.check(array, rows, view=views)
    joined.will_need(array, rows, view=views)


@pytest.mark.parametrize("view", range(6))
def test_one_view_of_all_rows(parts, view):
    joined, values = parts
    assert joined.whole("embedding", view=view).tobytes() == values[view].tobytes()
    rows = np.array([1099, 3, 3])
    assert joined.take(joined.part.array("embedding"), rows, view=view).tobytes() == values[view, rows].tobytes()


def test_which_views_there_are(parts):
    joined, _ = parts
    assert joined.views == (range(2), range(2, 5), range(5, 6))
    assert joined.first_view == 0 and joined.part.name == "vit.v0"


@pytest.mark.parametrize("view", [6, -1, np.array([0, 6]), np.array([-1, 2])])
def test_a_view_that_there_is_not(parts, view):
    joined, _ = parts
    array, rows = joined.part.array("embedding"), np.array([0, 1])
    for ask in (joined.take, joined.check, joined.will_need):
        with pytest.raises(UsageError, match="view"):
            ask(array, rows, view=view)


@pytest.mark.parametrize("rows", [np.array([0, ROWS]), np.array([-1, 2])])
def test_a_row_that_there_is_not(parts, rows):
    joined, _ = parts
    for view in (3, np.array([0, 5]), np.array([4, 4])):
        with pytest.raises(UsageError, match="rows 0 to 1,099"):
            joined.take(joined.part.array("embedding"), rows, view=view)


def test_rows_that_are_not_committed(tmp_path):
    objects = create_cache(tmp_path / "cache", source={})
    first, second = teacher_part(ROWS, name="a"), teacher_part(ROWS, name="b", views=(1, 3))
    values = write_part(objects, first)["embedding"]
    write_part(objects, second, skip={(2, 1)})
    joined = ViewParts([PartReader(objects, part) for part in (first, second)])
    array = first.array("embedding")
    assert (joined.take(array, np.array([1050]), view=np.array([0])) == values[0, 1050]).all()
    joined.check(array, np.array([0, 1050]), view=np.array([2, 1]))
    with pytest.raises(IncompleteError, match="not committed"):
        joined.check(array, np.array([0, 1050]), view=np.array([1, 2]))
