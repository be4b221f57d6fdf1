"""Build the book: execute what changed, stage the pages, run Sphinx with warnings as errors, then swap the result in.

A notebook is executed again only if its source, its parameters, the library or a record that it looked for changed.
The HTML of the last good build stays in place until a new one is complete.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import atomic_file, write_json

#: Notebooks executed side by side.
WORKERS = 2


class NotebookFailed(Exception):
    """A cell raised; the message holds the notebook, the cell and its traceback.

    Args:
        message: What happened.
        mendable: Whether all that was raised is a PruneLimitError, which a user can mend.
    """

    def __init__(self, message: str, mendable: bool = False) -> None:
        super().__init__(message)
        self.mendable = mendable


class Builder:
    """Everything that belongs to one build.

    Args:
        root: The checkout; the build goes into its folder ``_build``.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "_toc.yml").is_file():
            raise PruneLimitError(
                f"root={str(root)!r} is not a checkout of the book: clone the repository and call it there."
            )
        self.root, self.output = root, root / "_build"
        self.executed, self.stage, self.html = (self.output / n for n in ("executed", "stage", "html"))

    def notebooks(self) -> dict[str, Path]:
        """Return the notebooks by name."""
        return {path.stem: path for path in sorted((self.root / "notebooks").glob("*.ipynb"))}

    def library_digest(self) -> str:
        """Digest the library's sources and tables, and the interpreter and torch that run them."""
        from importlib.metadata import version

        sources = sorted(p for kind in ("py", "csv") for p in (self.root / "prunelimit").rglob(f"*.{kind}"))
        return _digest(
            [sys.version, version("torch"), *(f"{p.relative_to(self.root)}\n{p.read_text()}" for p in sources)]
        )

    def check_parameters(self, names: Iterable[str], parameters: dict[str, Any]) -> None:
        """Refuse a notebook or a parameter that does not exist.

        Args:
            names: Notebooks to execute.
            parameters: Values to inject.

        Raises:
            PruneLimitError: If a name is unknown; papermill itself would only warn.
        """
        known = self.notebooks()
        for name in names:
            if name not in known:
                raise unknown_name("notebook", name, known)
            allowed = notebook_parameters(known[name])
            for parameter in parameters:
                if parameter not in allowed:
                    raise unknown_name(f"parameter of {name}", parameter, allowed)

    def is_fresh(self, name: str, parameters: dict[str, Any], library: str) -> bool:
        """Return whether the executed notebook still stands for its source, parameters, library and records."""
        try:
            key = json.loads((self.executed / f"{name}.json").read_text(encoding="utf-8"))
            return (
                (self.executed / f"{name}.ipynb").is_file()
                and key["source"] == _file_digest(self.notebooks()[name])
                and key["parameters"] == parameters
                and key["library"] == library
                and all(_file_digest(self.root / path) == digest for path, digest in key["records"].items())
            )
        except (OSError, ValueError, KeyError):
            return False

    def execute(self, names: Sequence[str] | None = None, parameters: dict[str, Any] | None = None) -> int:
        """Execute the notebooks that changed, two at a time, with one line for each.

        Args:
            names: Which ones; all by default.
            parameters: Values to inject into each.

        Returns:
            How many were executed.

        Raises:
            NotebookFailed: If a cell raised, once the other notebooks are done.
        """
        parameters = parameters or {}
        names = list(self.notebooks()) if names is None else list(names)
        self.check_parameters(names, parameters)
        library = self.library_digest()
        stale = [n for n in names if not self.is_fresh(n, parameters, library)]
        if stale:
            print(f"executing {len(stale)} of {len(names)} notebooks", flush=True)
        else:
            print(f"{len(names)} notebooks are up to date", flush=True)
        failures, mendable = [], True
        context = multiprocessing.get_context("spawn")  # kernels start threads, which a fork would copy half-dead
        with concurrent.futures.ProcessPoolExecutor(max_workers=WORKERS, mp_context=context) as pool:
            jobs = {pool.submit(_execute_one, self.root, self.executed, n, parameters, library): n for n in stale}
            for job in concurrent.futures.as_completed(jobs):
                seconds, problem, own = job.result()
                print(f"  {jobs[job]:<12} {'failed' if problem else 'ok':<6} {seconds:6.1f} s", flush=True)
                if problem:
                    failures.append(problem)
                    mendable = mendable and own
        if failures:
            raise NotebookFailed("\n\n".join(failures), mendable)
        return len(stale)

    def write_stage(self) -> str:
        """Bring the staging folder up to date: configuration, chapters, executed notebooks, and what is made from records.

        Returns:
            A digest of everything in it.
        """
        wanted: dict[Path, bytes] = {
            Path(name): (self.root / name).read_bytes() for name in ("_config.yml", "_toc.yml")
        }
        for path in sorted((self.root / "book").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted[path.relative_to(self.root)] = path.read_bytes()
        for name in self.notebooks():
            text = json.dumps(
                staged_notebook(json.loads((self.executed / f"{name}.ipynb").read_text("utf-8"))), indent=1
            )
            wanted[Path("notebooks") / f"{name}.ipynb"] = text.encode()
        wanted[Path("book/_static/limit.svg")] = self.picture()
        wanted |= self.sliders()
        for relative, content in wanted.items():
            target = self.stage / relative
            # Files that did not change keep their time stamp, so that Sphinx reads only the others again.
            if not target.is_file() or target.read_bytes() != content:
                with atomic_file(target) as temporary:
                    temporary.write_bytes(content)
        for path in sorted(self.stage.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(self.stage) not in wanted and "_build" not in path.parts:
                path.unlink()
        return _digest(
            f"{relative} {hashlib.sha256(content).hexdigest()}" for relative, content in sorted(wanted.items())
        )

    def kept(self, name: str, make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
        """Return files made from the records; made again only if a record or the library changed.

        Args:
            name: Folder that keeps them, beside the executed notebooks.
            make: Makes them.

        Returns:
            File name to content.
        """
        records = sorted((self.root / "results").rglob("*.json"))
        key = _digest([self.library_digest(), *(f"{r.name} {_file_digest(r)}" for r in records)])
        folder = self.executed / f"{name}-{key[:16]}"
        if not folder.is_dir():
            for old in self.executed.glob(f"{name}-*"):
                shutil.rmtree(old)
            files = make()
            incoming = self.executed / f"{name}-new"
            incoming.mkdir(parents=True)
            for file, content in files.items():
                (incoming / file).write_bytes(content)
            incoming.rename(folder)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def picture(self) -> bytes:
        """Draw the answer in one picture from the best records of each task."""

        def make() -> dict[str, bytes]:
            from prunelimit import figures
            from prunelimit.experiments import frames

            cells = frames.load_cells()
            limits = frames.limits_frame(cells)
            cover = figures.plot_cover(cells[0].limit, f"{cells[0].title}, seed {cells[0].seed}", limits)
            return {"limit.svg": figures.as_svg(cover, figures.describe_limits(limits))}

        return self.kept("cover", make)["limit.svg"]

    def sliders(self) -> dict[Path, bytes]:
        """Gather what the page with the sliders needs: the recorded spectra, and the table for readers without scripts."""
        if not (self.root / "book" / "explore.md").is_file():
            return {}

        def make() -> dict[str, bytes]:
            from prunelimit.experiments import explore

            views = explore.load_views(explore.recorded_cells())
            data = explore.as_script(explore.explore_data(views))
            return {"explore-data.js": data, "explore-table.md": explore.as_table(views)}

        files = self.kept("explore", make)
        return {
            Path("book/_static/explore-data.js"): files["explore-data.js"],
            Path("book/explore-table.md"): files["explore-table.md"],
        }

    def build_html(self, digest: str) -> bool:
        """Run Sphinx over the stage, and put the result in place if it is complete.

        Args:
            digest: What :meth:`write_stage` returned.

        Returns:
            Whether anything had to be built.

        Raises:
            PruneLimitError: If Sphinx fails or warns, or a page is missing; the last good book is left alone.
        """
        mark = self.html / ".stage"
        if mark.is_file() and mark.read_text() == digest:
            return False
        program = "from jupyter_book.cli.main import main; main()"
        options = ["-W", "-n", "--keep-going", "-q"]  # warnings are errors, unresolved references warn
        words = [sys.executable, "-c", program, "build", *options, str(self.stage)]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        fresh = self.stage / "_build" / "html"
        self.copy_static(fresh)
        pages = [f"{page}.html" for page in toc_pages(self.root / "_toc.yml")]
        missing = [page for page in pages if not (fresh / page).is_file()]
        if done.returncode or missing:
            shutil.rmtree(fresh.parent, ignore_errors=True)
            log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
            problem = (
                f"missing pages: {', '.join(missing)}" if missing and not done.returncode else "Sphinx warned or failed"
            )
            raise PruneLimitError(f"the book was not built ({problem}); the last good one is untouched.\n{log[-6000:]}")
        incoming = self.output / "html.new"
        shutil.rmtree(incoming, ignore_errors=True)
        shutil.copytree(fresh, incoming)
        (incoming / ".stage").write_text(digest)
        old = self.output / "html.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.html.exists():
            self.html.rename(old)
        incoming.rename(self.html)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def copy_static(self, fresh: Path) -> None:
        """Copy static files that changed: Sphinx leaves them behind if no page has to be written.

        Args:
            fresh: The HTML that Sphinx made.
        """
        source = self.stage / "book" / "_static"
        for path in source.rglob("*"):
            target = fresh / "_static" / path.relative_to(source)
            if path.is_file() and not (target.is_file() and target.read_bytes() == path.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def build(self, parameters: dict[str, Any] | None = None) -> Path:
        """Execute, stage and build.

        Args:
            parameters: Values to inject into every notebook.

        Returns:
            The landing page.
        """
        start = time.monotonic()
        self.execute(parameters=parameters)
        built = self.build_html(self.write_stage())
        print(
            f"{'built' if built else 'unchanged:'} {self.html / 'index.html'} ({time.monotonic() - start:.1f} s)",
            flush=True,
        )
        return self.html / "index.html"


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def notebook_parameters(path: Path) -> list[str]:
    """Return the names that a notebook's ``parameters`` cell assigns.

    Args:
        path: The notebook.

    Returns:
        The names, in their order.
    """
    import ast

    names: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.Assign):
                    names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def toc_pages(path: Path) -> list[str]:
    """Return every page that a ``_toc.yml`` names, the root first."""
    import yaml

    def files(node: Any) -> Iterable[str]:
        if isinstance(node, dict):
            yield from (str(node[key]) for key in ("root", "file") if key in node)
            for value in node.values():
                yield from files(value)
        elif isinstance(node, list):
            for value in node:
                yield from files(value)

    return list(files(yaml.safe_load(path.read_text(encoding="utf-8"))))


def staged_notebook(notebook: dict[str, Any]) -> dict[str, Any]:
    """Prepare an executed notebook for Sphinx.

    Args:
        notebook: The notebook as papermill left it.

    Returns:
        The same notebook without machine paths and timings, and with each figure's text equivalent where MyST-NB looks
        for it: in the metadata of the cell.
    """
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("alt")
            if alt:
                cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = alt
    return notebook


def _execute_one(
    root: Path, executed: Path, name: str, parameters: dict[str, Any], library: str
) -> tuple[float, str | None, bool]:
    """Execute one notebook in this process; give its seconds and, if a cell raised, where and why, and if a user can mend it."""
    import warnings

    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = root / "notebooks" / f"{name}.ipynb"
    digest = _file_digest(source)
    executed.mkdir(parents=True, exist_ok=True)
    trace = executed / f".{name}.trace"
    trace.unlink(missing_ok=True)
    os.environ["PRUNELIMIT_TRACE"] = str(trace)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two kernels run side by side
    start = time.monotonic()
    log = executed / f".{name}.log"
    with open(log, "w") as file:  # the kernel inherits it: its remarks are of interest only if something fails
        os.dup2(file.fileno(), 2)
    try:
        with atomic_file(executed / f"{name}.ipynb") as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A name that ends in .part has no handler in papermill, so it writes next to it.
            local = temporary.with_suffix(".ipynb")
            try:
                papermill.execute_notebook(
                    str(source),
                    str(local),
                    parameters=parameters,
                    cwd=str(root / "notebooks"),
                    kernel_name="python3",
                    progress_bar=False,
                    log_output=False,
                )
                Path(local).replace(temporary)
            finally:
                local.unlink(missing_ok=True)
    except PapermillExecutionError as error:
        frames = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        number = f"{name}, cell {error.cell_index + 1}"
        if error.ename == PruneLimitError.__name__:
            return time.monotonic() - start, f"notebooks/{number}: {error.evalue}", True
        return time.monotonic() - start, f"notebooks/{number}:\n{error.source}\n\n{frames}", False
    except Exception as error:
        return time.monotonic() - start, f"notebooks/{name}: {error!r}\n{log.read_text()[-3000:]}", False
    finally:
        log.unlink(missing_ok=True)
    paths = sorted(set(trace.read_text(encoding="utf-8").split("\n")) - {""}) if trace.is_file() else []
    trace.unlink(missing_ok=True)
    records = {os.path.relpath(path, root): _file_digest(Path(path)) for path in paths}
    key = {"source": digest, "parameters": parameters, "library": library, "records": records}
    write_json(executed / f"{name}.json", key)
    return time.monotonic() - start, None, False
