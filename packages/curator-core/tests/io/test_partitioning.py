# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import zipfile
from pathlib import Path

import fsspec
import pytest
from fsspec.core import url_to_fs
from hypothesis import given
from hypothesis import strategies as st

from curator_core import ConfigurationError, DataError, EmptyTask, FileGroupTask, Pipeline, StageError
from curator_core.io import FilePartitioningStage


def make(root, *names, size=1):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def groups(*args, **kwargs):
    return [task.data for task in FilePartitioningStage(*args, **kwargs).process(EmptyTask())]


def names(*args, **kwargs):
    return [path.rpartition("/")[2] for group in groups(*args, **kwargs) for path in group]


def test_a_directory_is_searched_recursively_in_the_order_of_names(tmp_path):
    make(tmp_path, "b.txt", "a/z.txt", "a/b/c.txt", "A.txt")
    found = [str(tmp_path / name) for name in ("A.txt", "a/b/c.txt", "a/z.txt", "b.txt")]
    assert groups(tmp_path) == [[path] for path in found]
    assert groups(str(tmp_path)) == groups(f"file://{tmp_path}") == groups([f"{tmp_path}/"])


def test_globs(tmp_path):
    make(tmp_path, "a1.txt", "a2.txt", "b1.txt", "d/a3.txt", "d/e/a4.txt")
    assert names(f"{tmp_path}/a*.txt") == ["a1.txt", "a2.txt"]
    assert names(f"{tmp_path}/[ab]1.txt") == ["a1.txt", "b1.txt"]
    assert names(f"{tmp_path}/**/a*.txt") == ["a1.txt", "a2.txt", "a3.txt", "a4.txt"]
    assert names(f"{tmp_path}/d/*") == ["a3.txt"]  # a matching directory is not a file


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_directories_that_a_glob_matches_are_skipped_and_logged(tmp_path, caplog, scheme):
    fs, _ = url_to_fs(f"{scheme}{tmp_path}")
    for name in ("2024.txt/part-0.txt", "2025.txt", "days/01/a.txt"):  # as Spark writes
        fs.makedirs(f"{tmp_path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe(f"{tmp_path}/{name}", b"")
    assert names(f"{scheme}{tmp_path}/*.txt") == ["2025.txt"]
    assert "skipped while listing files: directories whose files do not match the pattern: 1" in caplog.text
    with pytest.raises(DataError, match=r"directories whose files do not match the pattern: 1 \(such as .*/01\)"):
        groups(f"{scheme}{tmp_path}/days/*")
    caplog.clear()
    assert len(groups(f"{scheme}{tmp_path}/**")) == 3
    assert not caplog.records


def test_a_file_in_several_paths_is_listed_once(tmp_path):
    make(tmp_path, "a.txt", "b.txt", "c.txt")
    assert names([tmp_path / "c.txt", f"{tmp_path}/[ab].txt", tmp_path]) == ["a.txt", "b.txt", "c.txt"]


def test_an_existing_name_that_looks_like_a_glob_is_used_as_is(tmp_path):
    make(tmp_path, "part[1].txt", "part1.txt")
    assert names(tmp_path / "part[1].txt") == ["part[1].txt"]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_directories_with_brackets_in_their_names_are_used_as_is(tmp_path, scheme):
    fs, _ = url_to_fs(f"{scheme}{tmp_path}")
    for name in ("data [2024]/a.txt", "data [2024]/b [1]/c.txt", "data 2/other.txt"):
        fs.makedirs(f"{tmp_path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe(f"{tmp_path}/{name}", b"")
    root = f"{scheme}{tmp_path}/data [2024]"
    assert names(root) == names(f"{root}/**") == names(f"{root}/**/*.txt") == ["a.txt", "c.txt"]
    assert names(f"{root}/*.txt") == ["a.txt"]
    assert names(f"{root}/b [1]/*") == ["c.txt"]
    assert names(f"{scheme}{tmp_path}/data [12]/*") == ["other.txt"]  # there is none of this name: a pattern


def test_names_below_a_wildcard_match_themselves(tmp_path):
    make(tmp_path, "data/b [1]/a.txt", "data/b [1]/[c].txt")
    assert names(f"{tmp_path}/*/b [1]/*.txt") == ["[c].txt", "a.txt"]
    assert names(f"{tmp_path}/**/[c].txt") == ["[c].txt"]


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("star", ["*.txt", "*.txt/a.txt"])
def test_files_hidden_by_a_file_named_like_a_glob_are_logged(tmp_path, caplog, scheme, star):
    fs, root = url_to_fs(f"{scheme}{tmp_path}/{len(star)}")
    for name in (star, "b.txt"):  # as a shell makes it of `> *.txt`
        fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe(f"{root}/{name}", b"")
    assert names(f"{scheme}{root}/*.txt") == [star.rpartition("/")[2]]
    assert "the exact name of a file or directory: 1" in caplog.text
    assert f"{root}/b.txt" in caplog.text


def test_local_names_with_colons_are_not_urls(tmp_path, monkeypatch):
    make(tmp_path, "run::1.txt", "s3::b/c.txt", "d/x://y/z.txt")
    monkeypatch.chdir(tmp_path)
    for given_path in ("run::1.txt", tmp_path / "run::1.txt", f"file://{tmp_path}/run::1.txt", "run::*"):
        assert groups(given_path) == [[str(tmp_path / "run::1.txt")]]
    assert names("./s3::b") == names(tmp_path / "s3::b") == ["c.txt"]
    assert names("d/x://y/*") == ["z.txt"]


def test_a_remote_name_that_cannot_be_in_a_url_is_an_error(memory_url, data_error):
    fs = fsspec.filesystem("memory")
    for name in ("a", "a::b"):  # opened by its URL, the second would be the first
        fs.pipe_file(f"{memory_url.removeprefix('memory:/')}/{name}", b"x")
    error = data_error(FilePartitioningStage(memory_url))
    assert "cannot be part of a URL" in error.message
    assert "a::b" in error.given


def test_hidden_files_are_skipped_unless_named_in_full(tmp_path):
    make(tmp_path, "a.txt", "_a.txt", ".a.txt.123.tmp", ".git/b.txt", "_temporary/0/c.txt")
    assert names(tmp_path) == ["_a.txt", "a.txt"]
    assert names(f"{tmp_path}/**") == ["_a.txt", "a.txt"]
    assert names(tmp_path / "_temporary") == ["c.txt"]
    assert names(tmp_path / ".a.txt.123.tmp") == [".a.txt.123.tmp"]


def test_links_are_followed_by_directory_and_glob(tmp_path):
    make(tmp_path, "real/a.txt", "real/deep/c.txt", "in/b.txt")
    (tmp_path / "in" / "file.txt").symlink_to(tmp_path / "real" / "a.txt")
    (tmp_path / "in" / "dir").symlink_to("../real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    found = [[f"{tmp_path}/in/{name}"] for name in ("b.txt", "dir/a.txt", "dir/deep/c.txt")]
    assert groups(tmp_path / "in") == groups(f"{tmp_path}/in/**") == groups(f"{tmp_path}/in/**/*.txt") == found
    assert groups(f"{tmp_path}/in/*/a.txt") == [[f"{tmp_path}/in/dir/a.txt"]]
    assert groups(f"{tmp_path}/in/*.txt") == [[f"{tmp_path}/in/b.txt"], [f"{tmp_path}/in/file.txt"]]


def test_a_file_that_is_also_linked_is_listed_under_its_own_name(tmp_path):
    make(tmp_path, "z/a.txt", "z/b/c.txt")
    (tmp_path / "a-link").symlink_to("z/b")
    (tmp_path / "a.txt").symlink_to("z/a.txt")
    (tmp_path / "z" / "b" / "link").symlink_to("..")
    own = [[f"{tmp_path}/z/a.txt"], [f"{tmp_path}/z/b/c.txt"]]
    assert groups(tmp_path) == own
    assert groups([tmp_path / "a-link", tmp_path / "a.txt", tmp_path / "z"]) == own
    assert groups([tmp_path / "a-link", tmp_path / "a.txt"]) == [
        [f"{tmp_path}/a-link/c.txt"],
        [f"{tmp_path}/a.txt"],
    ]
    (tmp_path / "linked").symlink_to(tmp_path / "z")  # the given path may itself be a link
    assert groups(tmp_path / "linked") == [[f"{tmp_path}/linked/a.txt"], [f"{tmp_path}/linked/b/c.txt"]]


PLACES = st.lists(st.sampled_from("abc"), max_size=3).map("/".join)


@given(st.sets(PLACES, max_size=6), st.lists(st.tuples(PLACES, st.sampled_from("xyz"), PLACES), max_size=6))
def test_every_reachable_file_is_found_once(tmp_path_factory, directories, links):
    root = tmp_path_factory.mktemp("in") / "root"
    for place in {"", *directories}:
        make(root / place, "f.txt")
    for place, name, target in links:
        if (root / place).is_dir() and not (root / place / name).is_symlink():
            (root / place / name).symlink_to(root / target)
    for start in {"", *directories}:
        reachable, waiting = set(), [(root / start).resolve()]
        while waiting:
            here = waiting.pop()
            if here not in reachable and here.is_dir():
                reachable.add(here)
                waiting += [entry.resolve() for entry in here.iterdir()]
        every = sorted(str(here / "f.txt") for here in reachable if (here / "f.txt").exists())
        for given_path in (str(root / start), f"{root / start}/**", f"{root / start}/**/[ef].txt"):
            found = [Path(path) for (path,) in groups(given_path)]
            assert sorted(str(path.resolve()) for path in found) == every
            own = {path for path in found if path == path.resolve()}
            assert own >= {Path(path) for path in every if Path(path).is_relative_to(root / start)}


def test_skipped_files_are_counted_and_logged_once(tmp_path, caplog):
    make(tmp_path, "in/a.jsonl", "in/b.jsonl.gz", "in/c.txt", "in/d.jsonl.br", "in/.e.jsonl", "in/_tmp/f.jsonl")
    (tmp_path / "in" / "g.jsonl").symlink_to("nowhere")
    (tmp_path / "in" / "h.jsonl").symlink_to("h.jsonl")
    os.mkfifo(tmp_path / "in" / "i.jsonl")
    source = FilePartitioningStage([tmp_path / "in", f"{tmp_path}/in/**"], file_extensions=[".jsonl"])
    result = Pipeline("p", [source]).run()
    assert [task.data[0].rpartition("/")[2] for task in result] == ["a.jsonl", "b.jsonl.gz"]
    (logged,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert logged == (
        f"skipped while listing files: broken links: 2 (such as {tmp_path}/in/g.jsonl), "
        f"hidden: 2 (such as {tmp_path}/in/.e.jsonl), "
        f"neither files nor directories: 1 (such as {tmp_path}/in/i.jsonl), "
        f"with other extensions: 2 (such as {tmp_path}/in/c.txt)"
    )
    assert result[0].stage_perf[0].custom_metrics == {"files_left_out": 7}
    caplog.clear()
    assert names([tmp_path / "in" / "c.txt", f"{tmp_path}/in/*.gz"], file_extensions=[".jsonl"]) == [
        "b.jsonl.gz",
        "c.txt",
    ]
    assert "skipped" not in caplog.text


def test_the_error_for_no_files_names_the_skipped_ones(tmp_path, data_error):
    make(tmp_path, ".a.txt")
    assert "hidden: 1" in data_error(FilePartitioningStage(tmp_path)).given


def test_file_extensions_select_among_listed_files(tmp_path):
    make(tmp_path, "a.jsonl", "b.JSON", "c.jsonl.gz", "d.txt", "e.gz")
    assert names(tmp_path, file_extensions=[".jsonl", ".json"]) == ["a.jsonl", "b.JSON", "c.jsonl.gz"]
    assert names(f"{tmp_path}/*", file_extensions=[".txt"]) == ["d.txt"]
    assert names(tmp_path / "d.txt", file_extensions=[".jsonl"]) == ["d.txt"]


def test_groups_are_limited_by_count_and_bytes(tmp_path):
    make(tmp_path, "a", "b", "c", "d", "e", size=10)
    make(tmp_path, "f", size=100)
    sizes = lambda **kwargs: [len(group) for group in groups(tmp_path, **kwargs)]  # noqa: E731
    assert sizes() == [1] * 6
    assert sizes(files_per_partition=4) == [4, 2]
    assert sizes(blocksize=25) == [2, 2, 1, 1]  # a larger file has its own group
    assert sizes(blocksize="1kB") == [6]
    assert sizes(blocksize=30, files_per_partition=2) == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("1 kB", 1000), ("1.5KiB", 1536), ("64MiB", 64 << 20), ("2g", 2 * 10**9)]
)
def test_sizes_can_be_text(text, size):
    assert FilePartitioningStage("a", blocksize=text)._max_bytes == size


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 5), st.integers(1, 60))
def test_groups_lose_nothing_keep_the_order_and_stay_in_bounds(sizes, count, limit):
    from curator_core.io.listing import Found

    files = [Found(f"{number:03}", size, "") for number, size in enumerate(sizes)]
    made = list(FilePartitioningStage("a", count, limit)._group(iter(files)))
    assert [file for group in made for file in group] == files
    for group in made:
        assert 1 <= len(group) <= count
        assert sum(file.size for file in group) <= limit or len(group) == 1


def test_a_file_of_unknown_size_forms_its_own_group():
    from curator_core.io.listing import Found

    files = [Found("a", 1, "a"), Found("b", None, "b"), Found("c", 1, "c")]
    made = FilePartitioningStage("a", blocksize=10)._group(files)
    assert [[file.name for file in group] for group in made] == [["a"], ["b"], ["c"]]


def test_ids_are_derived_from_the_paths_that_were_found(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "b.txt")
    monkeypatch.chdir(tmp_path)
    ids = [
        [task.task_id for task in Pipeline("p", [FilePartitioningStage(given)]).run()]
        for given in (tmp_path, ["b.txt", "a.txt"], "*.txt", f"file://{tmp_path}")
    ]
    assert ids[0] == [FileGroupTask([str(tmp_path / name)]).get_deterministic_id() for name in ("a.txt", "b.txt")]
    assert all(other == ids[0] for other in ids)


def test_groups_are_created_lazily(tmp_path):
    make(tmp_path, *(f"{number:02}" for number in range(20)))
    source = FilePartitioningStage(tmp_path).process(EmptyTask())
    assert next(source).data == [str(tmp_path / "00")]
    source.close()


def test_a_remote_filesystem_works(memory_url, caplog):
    fs = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "d/c.txt", "_schema/000001"):
        fs.pipe_file(f"{memory_url}/{name}", b"x")
    assert names(memory_url) == ["a.txt", "b.txt", "c.txt"]
    assert "skipped" not in caplog.text  # internal files of writers do not count
    for name in (".hidden", ".git/x.txt", "_temporary/x.txt"):
        fs.pipe_file(f"{memory_url}/{name}", b"x")
    root = memory_url.replace("memory://", "memory:///")
    assert groups(memory_url) == [[f"{root}/a.txt"], [f"{root}/b.txt"], [f"{root}/d/c.txt"]]
    assert names(f"{memory_url}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{memory_url}/**") == ["a.txt", "b.txt", "c.txt"]
    for (url,) in groups(memory_url):
        with fsspec.open(url) as file:
            assert file.read() == b"x"


def test_an_archive_is_read_through_a_chained_url(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "1")
        archive.writestr("b.txt", "2")
    found = groups(f"zip://*.txt::{tmp_path}/x.zip", files_per_partition=2)
    with fsspec.open_files(found[0]) as files:
        assert [file.read() for file in files] == [b"1", b"2"]


def test_storage_options_reach_the_filesystem(tmp_path):
    make(tmp_path, "d/a.txt")
    assert names("dir://a.txt", storage_options={"path": str(tmp_path / "d"), "target_protocol": "file"}) == ["a.txt"]


@pytest.mark.parametrize("path", ["missing.txt", "missing/", "*.csv", "empty"])
def test_a_path_without_files_is_an_error(tmp_path, data_error, path):
    make(tmp_path, "a.txt")
    (tmp_path / "empty").mkdir()
    error = data_error(FilePartitioningStage([tmp_path, tmp_path / path]))
    assert "no files found" in error.message
    assert error.field == str(tmp_path / path)


def test_the_error_for_wrong_extensions_names_a_file(tmp_path, data_error):
    make(tmp_path, "a.txt", "b.txt")
    error = data_error(FilePartitioningStage(tmp_path, file_extensions=[".jsonl"]))
    assert "none of the 2 files" in error.message
    assert "a.txt" in error.given
    assert ".jsonl" in error.expected


def test_an_unreadable_directory_is_an_error(public_path, data_error, as_nobody):
    make(public_path, "a.txt", "locked/b.txt")
    (public_path / "locked").chmod(0)
    for path in (public_path, public_path / "locked", public_path / "locked" / "b.txt"):
        with as_nobody():
            error = data_error(FilePartitioningStage(path))
        assert "errno 13, EACCES" in error.message
        assert error.field == str(path)
    (public_path / "locked").chmod(0o755)


@pytest.mark.parametrize("url", ["klingon://bucket/x", "s3x://bucket/*.jsonl"])
def test_an_unknown_scheme_is_an_error(url):
    with pytest.raises(StageError) as caught:
        Pipeline("p", [FilePartitioningStage(url)]).run()
    cause = caught.value.__cause__
    assert isinstance(cause, ConfigurationError)
    assert not isinstance(cause, DataError)
    assert cause.field == url
