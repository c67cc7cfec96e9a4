"""What a machine can check of how the code is built: directions, kernels, and what the core may not touch."""
import ast
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shm import configuration, kernel_cache
from tools.http_client import Client
from tools.local_exchange import KERNELS, private, running

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shm", "pipeline", "gateways", "tools")
MAY_IMPORT = {                     # of our packages, beside itself
    "shm": set(), "pipeline": {"shm"}, "gateways": {"shm"}, "tools": {"shm", "pipeline", "gateways"}}
CORE = {                           # all that decides an outcome; what else the core needs are names of constants
    "pipeline.admission", "pipeline.core", "pipeline.catalog", "pipeline.digest", "pipeline.idempotency",
    "pipeline.inbox", "pipeline.ledger", "pipeline.matching", "pipeline.money", "pipeline.order_book",
    "pipeline.output", "pipeline.prefetch", "pipeline.price_levels", "pipeline.reads", "pipeline.settlement",
    "pipeline.state", "shm.atomics", "shm.int128", "shm.records"}
CORE_MAY_IMPORT = {"numpy", "numba", "llvmlite", "typing", "enum", "operator"}
CORE_MAY_NAME = {
    "shm.segments": {"WORD_STRIDE", "EventWord"},  # the events ring's words
    "mmap": {"mmap"},                              # state.py reserves its arrays with it
}
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "ExternalFunction"}


def sources(*packages):
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def path_of(module):
    return ROOT / (module.replace(".", "/") + ".py")


def imports(tree):
    """(module, name or None) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package"
            yield from ((node.module, alias.name) for alias in node.names)


def kernels(tree):
    """(function, keywords of its njit) of every compiled function; None where there are none."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in ("njit", "jit", "vectorize", "guvectorize", "cfunc"):
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
                yield node, {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    for path in sources(package):
        ours = {module.partition(".")[0] for module, _ in imports(tree_of(path))} & {*PACKAGES, "tests", "run_exchange"}
        assert ours <= {package} | MAY_IMPORT[package], path


@pytest.mark.parametrize("module", sorted(CORE))
def test_the_core_imports_no_clock_and_no_input_or_output(module):
    tree = tree_of(path_of(module))
    for imported, name in imports(tree):
        allowed = imported in CORE or imported.partition(".")[0] in CORE_MAY_IMPORT
        named = imported in CORE_MAY_NAME and (name is None or name in CORE_MAY_NAME[imported])
        from_package = name is not None and f"{imported}.{name}" in CORE
        assert allowed or named or from_package, f"{module} imports {imported} {name or ''}"
    assert (module == "pipeline.state") or not any(imported == "mmap" for imported, _ in imports(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert called not in FORBIDDEN_CALLS, f"{module} line {node.lineno} calls {called}"


def test_every_kernel_is_kept_on_disk_and_counts_no_references():
    found = 0
    for path in sources(*PACKAGES):
        for function, keywords in kernels(tree_of(path)):
            where = f"{path.relative_to(ROOT)} line {function.lineno}: {function.name}"
            assert keywords.get("cache") is True, f"{where} is compiled anew in every process"
            assert keywords.get("_nrt") is False, f"{where} counts references, which costs more than what it does"
            found += 1
    assert found > 100


def test_the_cache_s_digest_covers_every_file_that_a_kernel_takes_something_from():
    # numba itself looks at the kernel's own file
    for path in sources(*PACKAGES):
        tree = tree_of(path)
        if list(kernels(tree)):
            used = {module.partition(".")[0] for module, _ in imports(tree)} & set(PACKAGES)
            assert used <= set(kernel_cache.SOURCE_FOLDERS), path


def test_the_core_is_called_by_what_re_runs_the_journal_with_the_same_functions():
    # whatever applies commands goes through `apply`: there is no second way into the state
    for path in sources("pipeline"):
        writers = {name for module, name in imports(tree_of(path)) if module == "pipeline.matching"}
        assert not writers - {"refuse"} or path.stem == "core", f"{path} imports {writers} from pipeline.matching"


def trade(exchange):
    """Something of every kind of command."""
    client = Client(exchange.url)
    market = client.call("market.list")[0]
    name, assets = market["name"], (market["stock"], market["money"])
    for user in (1, 2):
        for asset in assets:
            client.call("balance.update", user, asset, "tidy", int(time.time() * 1000), "1000000", {})
    for side, user in ((1, 1), (1, 1), (2, 2)):
        order = client.call("order.put_limit", user, name, side, "2", "10", "0.001", "0.001", "tidy")
    client.call("order.put_market", 2, name, 2, "10", "0.001", "tidy")
    resting = client.call("order.pending", 1, name, 0, 10)["records"] or [order]
    client.call("order.pending_detail", name, resting[0]["id"])
    client.call("order.cancel", resting[0]["user"], name, resting[0]["id"])
    for method, *params in (("order.book", name, 1, 0, 10), ("order.depth", name, 10, "0.1"), ("balance.query", 1),
                            ("asset.list",), ("asset.summary",), ("market.summary",)):
        client.call(method, *params)
    client.close()


def test_a_running_exchange_compiles_nothing(tmp_path):
    prepare = "from tools.local_exchange import prepare_kernels; prepare_kernels()"
    subprocess.run([sys.executable, "-c", prepare], cwd=ROOT, check=True)
    cache = tmp_path / "cache"
    shutil.copytree(kernel_cache.cache_directory(KERNELS), kernel_cache.cache_directory(cache))

    def kept():
        return {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb*")}
    before = kept()
    settings = private(configuration.load(ROOT / "exchange.toml"))
    with running(tmp_path / "data", replace(settings, cache=configuration.Cache(str(cache)))) as exchange:
        trade(exchange)
        for name in ("matcher", "journaler", "gateway-0", "watcher"):
            exchange.restart(name)
        trade(exchange)
    assert before and kept() == before
