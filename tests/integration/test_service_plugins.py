"""Plugins that are installed, upgraded, broken and rolled back while the service runs under load."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from tests.integration.service import ADMIN, PATIENCE, Service
from tests.integration.stub_server import StubServer

CODE = """
from dataclasses import replace

from workflow_composer import Plan, Tier, hookimpl
from workflow_composer.routers import Router
from wc_marking.mark import MARK


class Marking(Router):
    name = "marking"

    def plan(self, request, resources):
        {first}
        from wc_marking.late import LATE

        return Plan((Tier.of(self.context.candidates("small")),), self.name, f"{{MARK}} {{LATE}}")


@hookimpl
def register_routers(register):
    register("marking", {router})


@hookimpl
def before_route(request):
    from wc_marking.late import LATE

    return replace(request, metadata={{**(request.metadata or {{}}), "before": f"{{MARK}} {{LATE}}"}})


@hookimpl
def after_answer(request, response):
    from wc_marking import late

    marks = (request.metadata["before"], response.decision.reason, f"{{MARK}} {{late.LATE}}")
    late.write(marks)
"""
LATE = """
import json, os
from wc_marking.mark import MARK as LATE

def write(marks):
    with open(os.environ["WC_MARKS"], "a") as file:
        file.write(json.dumps(marks) + "\\n")
"""


def wheel(folder, version, *, first="", router="Marking", top=""):
    """A wheel of this version of the plugin, as a build would make it."""
    path = folder / f"wc_marking-{version}-py3-none-any.whl"
    info = f"wc_marking-{version}.dist-info"
    files = {
        "wc_marking/__init__.py": top + CODE.format(first=first, router=router),
        "wc_marking/mark.py": f"MARK = {version!r}\n",
        "wc_marking/late.py": LATE,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: wc-marking\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[workflow_composer]\nmarking = wc_marking\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as made:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            made.writestr(name, text)
    return path


class Site:
    """A folder of installed packages, on the path of the service."""

    def __init__(self, folder):
        self.folder, self.wheels = folder / "site", folder / "wheels"
        self.folder.mkdir()
        self.wheels.mkdir()
        self.marks = folder / "marks.jsonl"

    @property
    def environ(self):
        path = os.pathsep.join(filter(None, (str(self.folder), os.environ.get("PYTHONPATH", ""))))
        return {"PYTHONPATH": path, "WC_MARKS": str(self.marks)}

    def install(self, version, **code):
        """Install by pip, as a person does."""
        made = wheel(self.wheels, version, **code)
        for stale in self.folder.glob("wc_marking-*.dist-info"):
            for file in stale.iterdir():
                file.unlink()
            stale.rmdir()
        options = ("-q", "--no-index", "--no-deps", "--upgrade", "--no-warn-conflicts", "--target", self.folder)
        subprocess.run([sys.executable, "-m", "pip", "install", *options, made], check=True, capture_output=True)

    def read_marks(self):
        return [json.loads(line) for line in self.marks.read_text().splitlines()] if self.marks.exists() else []


def profile(folder, url):
    path = folder / "marked.yaml"
    path.write_text(
        json.dumps(
            {
                "profile_name": "marked",
                "allow_cloud": False,
                "models": {"small": {"backend": "vllm", "base_url": url, "model": "small"}},
                "task_routing": {"*": "small"},
                "routers": ["marking"],
            }
        )
    )
    return path


def admin(service, path, **body):
    status, _, answer = service.request("POST", path, body, headers={"Authorization": f"Bearer {ADMIN}"})
    return status, json.loads(answer)


class Load:
    """Clients that ask without a pause, every second one for a stream, until they are stopped."""

    def __init__(self, service, clients):
        self.service, self.lost, self.answers = service, [], 0
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number):
        stream = bool(number % 2)
        while not self._stop.is_set():
            body = {"model": "auto", "messages": [{"role": "user", "content": f"{number}"}], "stream": stream}
            try:
                status, _, answer = self.service.request("POST", "/v1/chat/completions", body)
            except Exception as error:
                status, answer = 0, repr(error).encode()
            good = status == 200 and (b"[DONE]" in answer if stream else b"choices" in answer)
            with self._lock:
                self.answers += 1
                if not good:
                    self.lost.append((status, answer[:300]))

    def wait_for(self, more):
        goal = self.answers + more
        while self.answers < goal and not self.lost:
            self._stop.wait(0.005)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("workers", [1, 2])
def test_new_versions_take_over_under_load_and_no_answer_is_mixed(tmp_path, workers):
    """64 clients; router and hooks leave their version on each answer. Unfit versions leave the old one serving."""
    site = Site(tmp_path)
    site.install("1.0")
    with StubServer(models=["small"]) as stub:
        options = ("--workers", str(workers), "--concurrency", "64")
        with Service(profile(tmp_path, stub.url), *options, environ=site.environ) as service, Load(service, 64) as load:
            load.wait_for(100)
            for version in ("2.0", "3.0"):
                site.install(version)
                load.wait_for(50)
                assert admin(service, "/admin/plugins/reload", dry_run=True)[1]["version"] is None
                status, said = admin(service, "/admin/plugins/reload", why="upgrade")
                assert status == 200, said
                assert said["plugins"][0]["to"].startswith(version)
                load.wait_for(150)
            unfit = {
                "4.0": {"top": "raise OSError('at import')\n"},
                "4.1": {"router": "lambda context, settings: 1 / 0"},
                "4.2": {"first": "raise KeyError('at its first plan')"},
                "4.3": {"first": "return 'small'"},
            }
            for version, code in unfit.items():
                site.install(version, **code)
                status, said = admin(service, "/admin/plugins/reload")
                assert status == 400, said
                assert "marking" in said["error"]["message"]
                load.wait_for(50)
            status, said = admin(service, "/admin/plugins/rollback")
            assert (status, said["plugins"][0]["to"][:3]) == (200, "2.0"), said
            load.wait_for(150)
        audit = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert load.lost == []
    marks = site.read_marks()
    assert len(marks) >= load.answers
    assert [mark for mark in marks if len({part for whole in mark for part in whole.split()}) != 1] == []
    versions = [mark[0].split()[0] for mark in marks]
    assert set(versions) == {"1.0", "2.0", "3.0"}
    assert set(versions[-50:]) == {"2.0"}
    assert [line["outcome"].split(":")[0] for line in audit if line["what"].startswith("plugins")] == (
        ["done"] * 2 + ["refused"] * 4 + ["done"]
    )


def until(condition):
    """Wait for it, for as long as a slow machine may need."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


ROUTER = """
from workflow_composer import Plan, Tier, hookimpl
from workflow_composer.routers import Router

class Mine(Router):
    name = "mine"
    def plan(self, request, resources):
        return Plan((Tier.of(self.context.candidates("small")),), self.name, {})

@hookimpl
def register_routers(register):
    register("mine", Mine)
"""


def test_a_file_is_edited_reloaded_broken_mended_and_rolled_back_from_the_command_line(tmp_path):
    """As a person does it; what is refused is an error in the log, and changes nothing."""
    file, environ = tmp_path / "mine.py", {**os.environ, "WORKFLOW_COMPOSER_ADMIN_TOKEN": ADMIN}
    file.write_text(ROUTER.format("'one'"))
    with StubServer(models=["small"]) as stub:
        path = profile(tmp_path, stub.url)
        path.write_text(json.dumps({**json.loads(path.read_text()), "routers": ["mine"], "plugins": ["./mine.py"]}))
        with Service(path, "--workers", "2", "--no-watch") as service:

            def reload(*options):
                command = [sys.executable, "-m", "workflow_composer", "plugins", "reload", "--url", service.url, *options]
                return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

            def reasons():
                body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
                before = lines()
                for _ in range(8):  # several connections, so that both workers answer
                    assert service.request("POST", "/v1/chat/completions", body)[0] == 200
                until(lambda: len(lines()) == len(before) + 8)
                return {json.loads(line)["reason"] for line in lines()[-8:]}

            def lines():
                return service.metrics.read_text().splitlines() if service.metrics.exists() else []

            assert (reload().returncode, reasons()) == (0, {"one"})
            file.write_text(ROUTER.format("'two'"))
            assert (reload("--dry-run").returncode, reasons()) == (0, {"one"})
            assert (reload().returncode, reasons()) == (0, {"two"})
            file.write_text(ROUTER.format("nowhere"))
            refused = reload()
            assert (refused.returncode, reasons()) == (2, {"two"})
            assert "nowhere" in refused.stderr
            service.process.send_signal(signal.SIGHUP)
            until(lambda: "reload failed" in service.log)
            assert [json.loads(line)["level"] for line in service.log.splitlines() if "reload failed" in line] == ["error"]
            assert (reload("--rollback").returncode, reasons()) == (0, {"one"})
            stopped = subprocess.run(["pgrep", "-P", str(service.process.pid)], capture_output=True, text=True, check=True)
            os.kill(int(stopped.stdout.split()[0]), signal.SIGKILL)
            until(lambda: "is being restarted" in service.log)
            assert reasons() == {"one"}  # a worker that starts now runs what the others run, not what is in the file


def test_a_stranger_writes_installs_and_reloads_a_router_and_sees_it_decide(tmp_path):
    """Into a service that has never heard of it: `plugins new`, edit, its test, pip, reload, switch, edit, reload."""
    site = Site(tmp_path)
    environ = {**os.environ, **site.environ, "WORKFLOW_COMPOSER_ADMIN_TOKEN": ADMIN}

    def run(*command, cwd=tmp_path):
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ours(*arguments):
        return run(sys.executable, "-m", "workflow_composer", *arguments)

    def edit(old, new):
        code = tmp_path / "by-length" / "by_length" / "__init__.py"
        code.write_text(code.read_text().replace(old, new))

    def install():
        options = ("-q", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(site.folder))
        run(sys.executable, "-m", "pip", "install", *options, "./by-length")

    ours("plugins", "new", "by-length", "--router")
    edit("Field(200, ge=1", "Field(5, ge=1")
    run(sys.executable, "-m", "pytest", "-q", cwd=tmp_path / "by-length")
    with StubServer(models=["s", "l"]) as stub:
        server = {"backend": "vllm", "base_url": stub.url}
        keys = {
            "allow_cloud": False,
            "models": {"small": {**server, "model": "s"}, "large": {**server, "model": "l"}},
            "task_routing": {"*": "small"},
        }
        for name, routers in (("before", ["provider"]), ("after", ["by_length", "provider"])):
            (tmp_path / f"{name}.yaml").write_text(json.dumps({"profile_name": name, "routers": routers, **keys}))
        with Service(tmp_path / "before.yaml", "--workers", "2", environ=site.environ) as service:

            def model(question):
                body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
                _, headers, _ = service.request("POST", "/v1/chat/completions", body)
                return headers["x-workflow-composer-model"]

            switch = {"Authorization": f"Bearer {ADMIN}"}
            assert service.request("PUT", "/admin/strategy", {"strategy": "after"}, headers=switch)[0] == 400
            install()
            assert "by-length" in ours("plugins", "reload", "--url", service.url)
            assert service.request("PUT", "/admin/strategy", {"strategy": "after"}, headers=switch)[0] == 200
            assert {model("short") for _ in range(4)} == {"small"} == {model("12345") for _ in range(4)}
            assert {model("a longer question") for _ in range(4)} == {"large"}
            edit("Field(5, ge=1", "Field(50, ge=1")
            install()
            ours("plugins", "reload", "--url", service.url)
            assert {model("a longer question") for _ in range(4)} == {"small"}
    environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")  # where it is not installed: the same from its folder
    options = ("--json", "-s", "after.yaml", "--plugin", "by-length/by_length")
    assert json.loads(ours(*options, "route", "12345"))["router"] == "by_length"
