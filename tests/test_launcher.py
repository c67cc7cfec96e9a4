"""Starting, stopping and dying of a whole exchange, by its launcher and a real supervisord; stand-ins for the processes
that hold state, which the kill test looks at.
"""
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import launch_stand_ins
import pytest
from launched import (
    KERNELS,
    REAL,
    ROOT,
    STAND_INS,
    WAIT_SECONDS,
    Launched,
    free_port,
    is_running,
    settings_with,
    wait_for,
)

import run_exchange
from shm import configuration, kernel_cache, role_lock, segments
from shm.process import memory_id
from shm.segments import SegmentError
from tools import supervisord_conf
from tools.launcher import FIRST_REQUEST, check_address


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    with Launched(tmp_path_factory.mktemp("launched") / "data",
                  settings_with(http={"gateways": 2}, binary={"gateways": 1})) as exchange:
        yield exchange.serving()


def test_a_started_exchange_serves_and_says_what_runs_where(exchange):
    pids = exchange.pids()
    assert set(pids) == {"journaler", "matcher", "gateway-0", "gateway-1", "binary-0", "snapshotter", "watcher"}
    assert exchange.post() == 200
    for name, pid in [*pids.items(), ("supervisord", exchange.pid("supervisord"))]:
        assert f"{name}: process {pid}, log {exchange.data / 'log' / name}.log" in exchange.said()
        assert (exchange.data / "log" / f"{name}.log").exists()
    url = f"http://127.0.0.1:{exchange.settings.http.port}/"
    assert f"\nBinary orders at 127.0.0.1:{exchange.settings.binary.port}.\n" in exchange.said()
    assert re.search(rf"\n  curl -s {url} -d '.*asset.list.*'\n", exchange.said())


def test_kernels_are_compiled_before_anything_is_started(exchange):
    said = exchange.said()
    assert "compiling kernel 1 of 2: first\ncompiling kernel 2 of 2: second\n" in said
    assert said.index("compiling") < said.index("Serving")


def test_what_holds_control_is_for_its_user_alone(exchange):
    for name, mode in (("run", 0o700), ("log", 0o700), ("run/supervisord.conf", 0o600),
                       ("run/supervisor.sock", 0o600), ("log/matcher.log", 0o600), ("instance", 0o600)):
        assert (exchange.data / name).stat().st_mode & 0o777 == mode, name


def test_a_second_start_on_one_data_directory_names_the_first_and_exits(exchange):
    with open(exchange.data / "second.out", "w+", encoding="utf-8") as out:
        second = subprocess.run(
            [*STAND_INS, "--config", str(exchange.data / "exchange.toml"), "--data", str(exchange.data)],
            stderr=out, timeout=WAIT_SECONDS)
        out.seek(0)
        assert f"exchange already runs on {exchange.data} as process {exchange.process.pid}" in out.read()
    assert second.returncode == 1
    assert exchange.post() == 200


def test_another_data_directory_runs_side_by_side(exchange, tmp_path):
    with Launched(tmp_path / "data") as other:
        other.serving()
        assert (exchange.post(), other.post()) == (200, 200)
        assert not set(exchange.pids().values()) & set(other.pids().values())
    assert exchange.post() == 200


def test_a_port_in_use_is_told_before_anything_starts(exchange, tmp_path):
    port = exchange.settings.http.port
    other = Launched(tmp_path / "data", None, "--http", f"127.0.0.1:{port}")
    assert other.ended() == 1
    assert f"HTTP cannot be served at 127.0.0.1:{port}: another program listens there." in other.said()
    assert "Choose another with --http HOST:PORT or [http] in the configuration" in other.said()
    assert not (tmp_path / "data" / "run" / "supervisord.conf").exists()


def test_a_binary_port_in_use_is_told_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exchange = Launched(tmp_path / "data", settings_with(binary={"gateways": 1, "port": port}))
        assert exchange.ended() == 1
    assert (f"the binary port cannot be served at 127.0.0.1:{port}: another program listens there. Choose another with"
            " [binary] in the configuration") in exchange.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_in_order_and_leaves_nothing(number, tmp_path):
    with Launched(tmp_path / "data") as exchange:
        pids = exchange.serving().pids()
        exchange.process.send_signal(number)
        assert exchange.ended() == 0
        assert (exchange.data / "stopped").read_text().split() == ["snapshotter", "gateway-0", "matcher", "journaler"]
        assert not any(map(is_running, pids.values())) and not role_lock.holders(exchange.data)
        stops = re.findall(r"stopped: ([\w-]+) \(", exchange.log("supervisord"))
        assert stops == ["watcher", "snapshotter", "gateway-0", "matcher", "journaler"]
        assert exchange.said().endswith("Stopped. Everything that was answered is in the journal.\n")
        with pytest.raises(SegmentError, match="is missing"):
            segments.attach(memory_id(exchange.data), exchange.settings.rings)


def test_a_signal_while_starting_stops_too(tmp_path):
    (tmp_path / "hang-matcher").touch()
    with Launched(tmp_path) as exchange:
        wait_for(lambda: "matcher" in role_lock.holders(tmp_path), "the matcher")
        exchange.process.terminate()
        assert exchange.ended() == 0
        assert not role_lock.holders(tmp_path)


def test_a_process_that_does_not_come_up_is_shown_with_its_log_and_all_is_stopped(tmp_path):
    (tmp_path / "fail-matcher").touch()
    with Launched(tmp_path) as exchange:
        assert exchange.ended() == 1
        assert "matcher ends again and again before it serves." in exchange.said()
        assert f"The end of {tmp_path / 'log' / 'matcher.log'}:" in exchange.said()
        assert "    matcher was told to fail" in exchange.said()
        assert not role_lock.holders(tmp_path)


def test_supervisord_dying_ends_its_processes_and_the_launcher(tmp_path):
    with Launched(tmp_path / "data") as exchange:
        pids = exchange.serving().pids()
        os.kill(exchange.pid("supervisord"), signal.SIGKILL)
        assert exchange.ended() == 1
        assert "supervisord ended by SIGKILL, and the exchange with it." in exchange.said()
        assert not any(map(is_running, pids.values()))


def test_a_killed_launcher_leaves_no_orphan_and_the_next_start_goes_well(tmp_path):
    data = tmp_path / "data"
    with Launched(data) as exchange:
        pids = {"supervisord": exchange.serving().pid("supervisord"), **exchange.pids()}
        exchange.process.kill()
        exchange.ended()
        # at once, while the old processes still end
        with Launched(data, exchange.settings) as successor:
            successor.serving()
            assert not any(map(is_running, pids.values()))
            assert successor.post() == 200


@pytest.mark.parametrize("folder", ["d" * 100, "with blank, \"quoted\", a \\ and 'ü'"])
def test_a_data_directory_may_be_deep_and_oddly_named(folder, tmp_path):
    with Launched(tmp_path / folder / "data") as exchange:
        exchange.serving()
        assert exchange.post() == 200
        old_pid = exchange.kill("gateway-0")
        exchange.back("gateway-0", old_pid)
        short = Path(f"/tmp/exchange-{os.geteuid()}-{memory_id(exchange.data).hex[:12]}")
        assert not short.exists() or short.stat().st_mode & 0o777 == 0o700
        exchange.process.terminate()
        assert exchange.ended() == 0
        assert not short.exists()


COMPILE_SECONDS = 300          # on a loaded machine


def test_the_real_processes_serve_survive_kills_and_stop_well(tmp_path):
    settings = settings_with(http={"gateways": 2}, binary={"gateways": 1}, cache={"directory": str(KERNELS)})
    with Launched(tmp_path / "data", settings, program=REAL) as exchange:
        pids = exchange.serving(COMPILE_SECONDS).pids()
        time.sleep(0.5)  # the watcher saw every page
        for name in pids:
            old_pid = exchange.kill(name)
            exchange.back(name, old_pid)
            wait_for(lambda: exchange.post(FIRST_REQUEST) == 200, f"an answer after the end of {name}")
        exchange.process.terminate()
        assert exchange.ended() == 0
        stops = re.findall(r"stopped: ([a-z]+)\S* (.*)", exchange.log("supervisord"))
        assert sorted(stops[2:5]) == [(kind, "(exit status 0)") for kind in ("binary", "gateway", "gateway")]
        assert stops[:2] + stops[5:] == [
            (kind, "(exit status 0)") for kind in ("watcher", "snapshotter", "matcher", "journaler")]


def test_a_data_directory_that_supervisord_cannot_take_is_refused(tmp_path):
    for name in ("a ;b", "100%"):
        exchange = Launched(tmp_path / name)
        assert exchange.ended() == 1
        assert "a % or a blank before ; or #: supervisord cannot take it" in exchange.said()


def launcher(*arguments):
    return subprocess.run([sys.executable, "-m", "tools.launcher", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True, timeout=WAIT_SECONDS)


def test_check_tells_every_problem_at_once_and_starts_nothing(tmp_path):
    config = tmp_path / "exchange.toml"
    config.write_text('[http]\nport = 0\n[journal]\nsync = "often"\n[[assets]]\nname = "A"\nprec_save = 99\n')
    found = launcher("--check", "--config", config, "--data", tmp_path / "data")
    assert found.returncode == 1
    assert f"3 problems in {config}:" in found.stderr
    for words in ("http.port = 0", 'journal.sync = "often"', 'assets "A" prec_save = 99'):
        assert words in found.stderr
    assert not (tmp_path / "data").exists()


def test_check_of_a_good_configuration_says_so_and_exits_well(tmp_path):
    found = launcher("--check", "--data", tmp_path / "data", "--http", "[::1]:9999")
    assert found.returncode == 0 and "is in order: 7 assets, 7 markets, HTTP at http://[::1]:9999/" in found.stdout
    assert not (tmp_path / "data").exists()


def test_setup_prepares_and_exits(tmp_path):
    exchange = Launched(tmp_path / "data", None, "--setup")
    assert exchange.ended() == 0
    assert f"Ready to start on {tmp_path / 'data'}." in exchange.said()
    assert list((tmp_path / "data" / "cache").glob("kernels-*/COMPLETE"))


def system_project(folder):
    """A folder like the project's root, with stand-ins, set up for a supervisord that a system starts."""
    for name in ("gateways", "pipeline", "shm", "tools", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    (folder / "data" / "run").mkdir(parents=True)
    (folder / "data" / "log").mkdir()
    (folder / "supervisord.conf").write_text(launch_stand_ins.conf_text())
    settings = settings_with()
    configuration.write(settings, folder / "exchange.toml")
    return settings


@pytest.mark.parametrize("included", [False, True], ids=["as it is", "included by another"])
def test_supervisord_conf_serves_a_system_supervisord(included, tmp_path):
    project = tmp_path / "the project"
    project.mkdir()
    settings = system_project(project)
    conf = project / "supervisord.conf"
    if included:
        conf = tmp_path / "system.conf"
        conf.write_text(
            f"[supervisord]\npidfile = {tmp_path}/system.pid\n[include]\nfiles = the?project/supervisord.conf\n")
    exchange = Launched.__new__(Launched)
    exchange.data, exchange.settings = project / "data", settings
    supervisord = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(conf)], cwd=tmp_path)
    try:
        for name in ("journaler", "matcher", "gateway-0", "snapshotter", "watcher"):
            wait_for(lambda name=name: name in role_lock.holders(exchange.data), name)
            wait_for(lambda name=name: exchange.is_ready(name), name)
        assert exchange.post() == 200
        time.sleep(1.1)  # the watcher saw every page
        old_pid = exchange.kill("matcher")
        killed_at = time.monotonic()
        exchange.back("matcher", old_pid)
        assert time.monotonic() - killed_at < 1.0
        assert (tmp_path / "system.pid").exists() == included
    finally:
        supervisord.terminate()
        supervisord.wait(WAIT_SECONDS)
        segments.unlink(memory_id(exchange.data))
    assert (exchange.data / "stopped").read_text().split() == ["snapshotter", "gateway-0", "matcher", "journaler"]


COMPILER = "import time; from shm.kernel_cache import progress_line; progress_line(0, 1, 'kernel'); time.sleep(0.3)"


def compile_in_another_process(root, code=COMPILER):
    program = (f"import sys\nfrom shm import kernel_cache\nkernel_cache.COMPILER = (sys.executable, '-c', {code!r})\n"
               f"kernel_cache.ensure_compiled({str(root)!r}, lambda *said: print(*said, flush=True))\n"
               "print('NUMBA_CACHE_DIR' in __import__('os').environ, 'numba' in sys.modules, flush=True)\n"
               "sys.stdin.read()\n")
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_one_process_compiles_and_the_others_wait_for_it(tmp_path):
    both = [compile_in_another_process(tmp_path) for _ in range(2)]
    said = sorted(process.communicate("", WAIT_SECONDS)[0] for process in both)
    assert said == ["0 1 kernel\nTrue False\n", "True False\n"]


def test_kernels_of_other_sources_are_removed_unless_a_process_uses_them(tmp_path):
    unused, used = tmp_path / "kernels-unused", tmp_path / "kernels-used"
    kernel_cache._hold(used)
    (unused / "some").mkdir(parents=True)
    (tmp_path / "not ours").mkdir()
    compile_in_another_process(tmp_path).communicate("", WAIT_SECONDS)
    assert not unused.exists() and used.exists() and (tmp_path / "not ours").exists()


def test_a_failed_compilation_says_what_the_compiler_said_and_leaves_nothing_complete(tmp_path):
    failing = compile_in_another_process(tmp_path, "print(1); raise SystemExit('no room')")
    _out, error = failing.communicate("", WAIT_SECONDS)
    assert "CompilationFailed" in error and "no room" in error
    assert not list(tmp_path.glob("kernels-*/COMPLETE"))


def test_kernels_that_were_cut_short_are_compiled_again(tmp_path):
    code = ("import os, pathlib; from shm.kernel_cache import progress_line; progress_line(0, 1, 'kernel');"
            " pathlib.Path(os.environ['NUMBA_CACHE_DIR'], 'kernel.nbc').write_bytes(bytes(100))")

    def compiled():
        return compile_in_another_process(tmp_path, code).communicate("", WAIT_SECONDS)[0].startswith("0 1 kernel")
    assert (compiled(), compiled()) == (True, False)
    kernel, = tmp_path.glob("kernels-*/kernel.nbc")
    os.truncate(kernel, 99)
    assert (compiled(), compiled()) == (True, False)
    os.truncate(kernel, 200)   # a signature more
    assert not compiled()
    kernel.unlink()
    assert (compiled(), compiled()) == (True, False)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    _out, error = compile_in_another_process(tmp_path / "file").communicate("", WAIT_SECONDS)
    assert f"the kernel cache {tmp_path / 'file'} cannot be used" in error and "[cache] directory" in error


def test_a_changed_source_or_setting_has_another_place_for_its_kernels(tmp_path, monkeypatch):
    for folder in kernel_cache.SOURCE_FOLDERS:
        (tmp_path / folder).mkdir()
    first = kernel_cache.digest(tmp_path)
    assert kernel_cache.digest(tmp_path) == first
    (tmp_path / "shm" / "ring.py").write_text("A = 1\n")
    second = kernel_cache.digest(tmp_path)
    (tmp_path / "shm" / "ring.py").write_text("A = 2\n")
    third = kernel_cache.digest(tmp_path)
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert len({first, second, third, kernel_cache.digest(tmp_path)}) == 4


def test_the_list_of_processes_is_rendered_without_a_trace_of_the_projects_own_data(tmp_path):
    text = supervisord_conf.render(tmp_path / "sock", config=tmp_path / "c.toml", data=tmp_path / "data", gateways=3,
                                    binary_gateways=2)
    assert "%(here)s" not in text and str(ROOT / "data") not in text
    assert "numprocs = 3" in text and "numprocs = 2" in text


def test_a_damaged_instance_file_is_named_before_anything_starts(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "instance").write_text("\n")
    exchange = Launched(data)
    assert exchange.ended() == 1
    assert f"{data / 'instance'} holds '', which is no instance id: restore it from a copy" in exchange.said()


def test_a_host_that_is_not_here_is_told(tmp_path):
    exchange = Launched(tmp_path / "data", None, "--http", f"192.0.2.1:{free_port()}")
    assert exchange.ended() == 1 and "this host has no such address" in exchange.said()


def test_a_wrong_python_is_told_so_in_words(monkeypatch):
    for version in ((2, 7, 18), (3, 9, 1), (3, 14, 0)):
        monkeypatch.setattr(sys, "version_info", version)
        words = f"this is Python {version[0]}.{version[1]}, and the exchange needs Python 3.10"
        with pytest.raises(SystemExit, match=words):
            run_exchange.main()


def test_the_one_command_hands_its_options_to_the_launcher_from_any_directory(monkeypatch, tmp_path):
    handed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_exchange, "prepare", lambda: None)
    monkeypatch.setattr(os, "execv", lambda *arguments: handed.append(arguments))
    monkeypatch.setattr(sys, "argv", ["run_exchange.py", "--check"])
    run_exchange.main()
    python = str(ROOT / ".venv" / "bin" / "python")
    assert handed == [(python, [python, "-I", "-m", "tools.launcher", "--check"])]


def test_an_unreachable_package_index_is_told_apart_from_other_failures():
    assert run_exchange.is_unreachable("WARNING: Retrying (Retry(total=1)) after connection broken by 'ProxyError'")
    assert run_exchange.is_unreachable("ERROR: No matching distribution found for numba<0.69,>=0.68")
    assert not run_exchange.is_unreachable("error: could not create '/x': Permission denied")


def test_a_port_is_free_again_for_the_next_start_at_once():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    check_address("HTTP", configuration.Http(port=port), "")
