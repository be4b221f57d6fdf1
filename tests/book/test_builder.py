"""The builder executes what changed and nothing else, and never breaks the last good book."""

import json
import subprocess

import nbformat
import pytest

from prunelimit.book import Builder, NotebookFailed, notebook_parameters, staged_notebook, toc_pages
from prunelimit.errors import PruneLimitError

CONFIG = "title: t\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: 'off'\n"


def write_notebook(root, name, source):
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell("size = 2\nnames = None", metadata={"tags": ["parameters"]})
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {name}"), parameters, nbformat.v4.new_code_cell(source)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A little book with two notebooks, one of which looks for a record."""
    for folder in ("notebooks", "book", "prunelimit", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: notebooks/one\n- file: notebooks/two\n"
    )
    (tmp_path / "book" / "index.md").write_text("# Index\n")
    write_notebook(tmp_path, "one", "print(size * 21)")
    code = (
        "from prunelimit.experiments.store import load_record\nfrom prunelimit.training import TrainSpec\n"
        "print(load_record('test', TrainSpec(dataset='digits', model='fc5-quick')))"
    )
    write_notebook(tmp_path, "two", code)
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(Builder, "picture", lambda self: b"<svg/>")
    return tmp_path


def outputs(builder, name):
    cells = json.loads((builder.executed / f"{name}.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in cells for o in cell.get("outputs", []))


def test_only_what_changed_is_executed_again(root, capsys):
    from prunelimit.experiments.store import save_record
    from prunelimit.training import TrainSpec

    builder = Builder(root)
    assert builder.execute() == 2
    assert outputs(builder, "one") == "42\n"
    assert builder.execute() == 0
    write_notebook(root, "one", "print(size * 22)")
    assert builder.execute() == 1
    assert outputs(builder, "one") == "44\n"
    save_record("test", TrainSpec(dataset="digits", model="fc5-quick"), {"value": 1})
    assert builder.execute() == 1  # the notebook had looked for that record
    assert "'value': 1" in outputs(builder, "two")
    assert builder.execute(["one"], {"size": 3}) == 1
    assert outputs(builder, "one") == "66\n"
    (root / "prunelimit" / "new.py").write_text("")
    assert builder.execute(["two"]) == 1
    assert " s\n" in capsys.readouterr().out


def test_a_failing_cell_is_named_with_its_traceback(root):
    write_notebook(root, "one", "boat = 1 / 0")
    with pytest.raises(NotebookFailed, match=r"(?s)one, cell 3.*boat = 1 / 0.*ZeroDivisionError") as caught:
        Builder(root).execute()
    assert not caught.value.mendable
    assert not (root / "_build" / "executed" / "one.ipynb").exists()


def test_what_a_user_can_mend_is_a_sentence(root):
    write_notebook(root, "one", "from prunelimit.checks import integer\ninteger('size', size, 1)")
    with pytest.raises(NotebookFailed) as caught:
        Builder(root).execute(["one"], {"size": 0})
    assert caught.value.mendable
    assert str(caught.value) == "notebooks/one, cell 4: size=0 must be a whole number, at least 1."


def test_an_unknown_parameter_is_refused(root):
    with pytest.raises(PruneLimitError, match="Did you mean 'size'"):
        Builder(root).execute(["one"], {"sizes": 3})


def test_an_unknown_notebook_is_refused(root):
    with pytest.raises(PruneLimitError, match="notebook='fig'"):
        Builder(root).execute(["fig"])


def test_parameters_are_read_from_the_tagged_cell(root):
    assert notebook_parameters(root / "notebooks" / "one.ipynb") == ["size", "names"]


def test_every_page_of_the_table_of_contents_is_found(root):
    assert toc_pages(root / "_toc.yml") == ["book/index", "notebooks/one", "notebooks/two"]


def test_staging_moves_the_text_equivalent_and_drops_machine_paths():
    cell = {"metadata": {"papermill": {}}, "outputs": [{"metadata": {"alt": "a line"}}]}
    staged = staged_notebook({"metadata": {"papermill": {"input_path": "/secret"}}, "cells": [cell]})
    assert staged["metadata"] == {}
    assert staged["cells"][0]["metadata"] == {"mystnb": {"image": {"alt": "a line"}}}


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(PruneLimitError, match="is not a checkout"):
        Builder(tmp_path)


def test_a_build_that_fails_leaves_the_last_good_book(root):
    builder = Builder(root)
    page = builder.build()
    good = page.read_bytes()
    assert (builder.html / "notebooks" / "one.html").is_file()
    assert not builder.build_html(builder.write_stage())  # nothing changed, nothing built
    (root / "book" / "index.md").write_text("# Index\n\n[broken](nowhere.md)\n")
    with pytest.raises(PruneLimitError, match="last good one is untouched"):
        builder.build()
    assert page.read_bytes() == good


def test_killed_while_it_executes_it_leaves_only_whole_files(root):
    write_notebook(root, "one", "import time; time.sleep(60)")
    import os
    import signal
    import sys
    import time

    code = f"from pathlib import Path\nfrom prunelimit.book import Builder\nif __name__ == '__main__':\n    Builder(Path({str(root)!r})).execute()\n"
    (root / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(root / "go.py")], start_new_session=True, stdout=subprocess.DEVNULL)
    time.sleep(8)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    write_notebook(root, "one", "print('back')")
    builder = Builder(root)
    builder.execute()
    assert outputs(builder, "one") == "back\n"
    for path in builder.executed.glob("*.ipynb"):
        json.loads(path.read_text())
