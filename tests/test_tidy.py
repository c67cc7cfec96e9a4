"""What a machine can check of how the code is built: directions, kernels, and what the core may not touch."""
import ast
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from shm import configuration, kernel_cache
from shm.records import Side
from tools.binary_client import BinaryClient
from tools.client import Client
from tools.local_exchange import KERNELS, private, running

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shm", "pipeline", "gateways", "tools")
MAY_IMPORT = {                     # of our packages, beside itself
    "shm": set(), "pipeline": {"shm"}, "gateways": {"shm"}, "tools": {"shm", "pipeline", "gateways"}}
CORE = {                           # all that decides an outcome; what else the core needs are names of constants
    "pipeline.admission", "pipeline.core", "pipeline.catalog", "pipeline.digest", "pipeline.idempotency",
    "pipeline.inbox", "pipeline.ledger", "pipeline.matching", "pipeline.money", "pipeline.order_book",
    "pipeline.output", "pipeline.prefetch", "pipeline.price_levels", "pipeline.reads", "pipeline.settlement",
    "pipeline.state", "shm.atomics", "shm.int128", "shm.kernel", "shm.records"}
CORE_MAY_IMPORT = {"numpy", "numba", "llvmlite", "typing", "enum", "operator"}
CORE_MAY_NAME = {
    "shm.segments": {"WORD_STRIDE", "EventWord"},  # the events ring's words
    "mmap": {"mmap"},                              # state.py reserves its arrays with it
}
CALLABLE, PARTS = {"kernel", "sleeping_kernel"}, {"inlined", "called"}  # how shm/kernel.py lets functions be compiled
COMPILERS = {"njit", "jit", "vectorize", "guvectorize", "cfunc"}
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


def decorators(function):
    """The names of a function's decorators."""
    for decorator in function.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def compiled(tree):
    """{name: how} of the functions that are compiled."""
    return {function.name: how for function in functions(tree) for how in decorators(function)
            if how in {*CALLABLE, *PARTS, *COMPILERS}}


def calls_from_python(tree):
    """(line, module or "", name) of every call by its name or its module's, but those in compiled functions."""
    names, modules = {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = (node.module, alias.name)
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    inside = compiled(tree)

    def look(node):
        if isinstance(node, ast.FunctionDef) and node.name in inside:
            return
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, *names.get(node.func.id, ("", node.func.id))
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                yield node.lineno, modules.get(node.func.value.id, "?"), node.func.attr
        for child in ast.iter_child_nodes(node):
            yield from look(child)
    return look(tree)


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


def test_every_function_is_compiled_in_one_of_four_ways():
    # without counting references, and kept on disk with an entry for Python only where Python calls: shm/kernel.py
    found = 0
    for path in sources(*PACKAGES):
        if path != path_of("shm.kernel"):
            ways = compiled(tree_of(path))
            assert not set(ways.values()) & COMPILERS, f"{path}: use shm/kernel.py"
            found += len(ways)
    assert found > 100


def test_python_calls_no_part_of_a_kernel():
    # it has no entry for Python: the process would end by SIGSEGV
    parts = {(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."), name)
             for path in sources(*PACKAGES) for name, how in compiled(tree_of(path)).items() if how in PARTS}
    assert len(parts) > 100
    for path in sources(*PACKAGES, "tests"):
        own = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for line, module, name in calls_from_python(tree_of(path)):
            assert (module or own, name) not in parts, f"{path} line {line} calls {name}: make it a kernel"


def test_the_cache_s_digest_covers_every_file_that_a_kernel_takes_something_from():
    # numba itself looks at the kernel's own file
    for path in sources(*PACKAGES):
        tree = tree_of(path)
        if compiled(tree):
            used = {module.partition(".")[0] for module, _ in imports(tree)} & set(PACKAGES)
            assert used <= set(kernel_cache.SOURCE_FOLDERS), path


def test_the_core_is_called_by_what_re_runs_the_journal_with_the_same_functions():
    # whatever applies commands goes through `apply`: there is no second way into the state
    for path in sources("pipeline"):
        writers = {name for module, name in imports(tree_of(path)) if module == "pipeline.matching"}
        assert path.stem in ("core", "kernels") or not writers - {"refuse"}, f"{path} imports {writers}"


def trade(exchange):
    """Something of every kind of command."""
    fee = Decimal("0.001")
    with Client(exchange.url) as client:
        market = client.market_list()[0]
        for user in (1, 2):
            for asset in (market.stock, market.money):
                client.balance_update(user, asset, "tidy", int(time.time() * 1000), 1_000_000)
        for side, user in ((Side.ASK, 1), (Side.ASK, 1), (Side.BID, 2)):
            order = client.order_put_limit(user, market.name, side, 2, 10, fee, fee, "tidy")
        client.order_put_market(2, market.name, Side.BID, 10, fee, "tidy")
        resting = (client.order_pending(1, market.name).orders or [order])[0]
        client.order_pending_detail(market.name, resting.id)
        client.order_cancel(resting.user, market.name, resting.id)
        client.order_book(market.name, Side.ASK)
        client.order_depth(market.name, 10, Decimal("0.1"))
        client.balance_query(1)
        client.asset_list()
        client.asset_summary()
        client.market_summary()
    with BinaryClient(exchange.settings.binary.host, exchange.settings.binary.port) as client:
        order = client.put_limit(1, 0, Side.ASK, 10**8, 10**5, label="tidy")
        client.put_market(2, 0, Side.BID, 10**10)
        client.query_balance(1, 0)
        client.ping()
        client.cancel(1, 0, client.put_limit(1, 0, Side.ASK, 10**8, order.price + 10**5).order_id)


def test_a_running_exchange_compiles_nothing(tmp_path):
    prepare = "from tools.local_exchange import prepare_kernels; prepare_kernels()"
    subprocess.run([sys.executable, "-c", prepare], cwd=ROOT, check=True)
    cache = tmp_path / "cache"
    shutil.copytree(kernel_cache.cache_directory(KERNELS), kernel_cache.cache_directory(cache))

    def kept():
        return {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb*")}
    before = kept()
    settings = private(configuration.load(ROOT / "exchange.toml"))
    settings = replace(settings, binary=replace(settings.binary, gateways=1),
                       cache=configuration.Cache(str(cache)))
    with running(tmp_path / "data", settings) as exchange:
        trade(exchange)
        for name in ("matcher", "journaler", "gateway-0", "binary-0", "watcher"):
            exchange.restart(name)
        trade(exchange)
    assert before and kept() == before
