"""A small model Hub on loopback, which speaks the HTTP that the real ``huggingface_hub`` client speaks."""

import base64
import hashlib
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

import yaml


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: ``repos[repo_id][path]`` is a file's content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.lfs: dict[str, bytes] = {}
        self.commits: list[str] = []  # repository of each
        self.requests: list[str] = []  # a line for each, without what differs from push to push
        self.faults: dict[str, str] = {}  # such a line -> "500", "timeout", "cut" or "lost" (done, and not answered)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()  # or the thread would go on, and ask a closed socket without end
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = ""
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        # Cut where the test says so: the client sees a closed connection
        with suppress(ConnectionError):
            super().handle_one_request()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        path = re.sub("/[0-9a-f]{40,64}", "/HASH", unquote(urlparse(self.path).path))
        line = f"{self.command} {path}"
        self.server.requests.append(line)
        fault = self.server.faults.get(line)
        if fault is None:
            return True
        if fault == "lost":
            self.fault = fault
            return True
        self.body()
        if fault.isdigit():  # and the connection stays: the client would ask the next thing on it
            self.answer({"error": "a fault"}, int(fault))
            return False
        if fault == "timeout":
            threading.Event().wait(2.0)  # longer than the client waits in the tests
        self.close_connection = True
        return False

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        if self.fault == "lost":
            self.close_connection = True
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def revision(self, repo_id: str) -> str:
        files = self.server.repos[repo_id]
        return _sha1(repr(sorted((path, _sha1(content)) for path, content in files.items())).encode())

    def model_info(self, repo_id: str) -> dict[str, Any]:
        files = self.server.repos[repo_id]
        info = {"id": repo_id, "modelId": repo_id, "sha": self.revision(repo_id), "private": False, "tags": []}
        info["siblings"] = [{"rfilename": path, "size": len(files[path])} for path in sorted(files)]
        card = files.get("README.md", b"").decode().split("---")
        if len(card) > 2:
            with suppress(yaml.YAMLError):
                info["cardData"] = yaml.safe_load(card[1])
        return info

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            if len(path) == 2:
                return self.answer([self.model_info(repo_id) for repo_id in self.server.repos])
            repo_id = "/".join(path[2:4])
            if repo_id not in self.server.repos:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if path[4:5] == ["tree"]:
                files = self.server.repos[repo_id].items()
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": _sha1(data)} for name, data in files
                ]
                return self.answer(entries)
            return self.answer(self.model_info(repo_id))
        if path[2:3] == ["resolve"]:
            repo_id, name = "/".join(path[:2]), "/".join(path[4:])
            if repo_id not in self.server.repos:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            content = self.server.repos[repo_id].get(name)
            if content is None:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.answer(content, ETag=f'"{_sha1(content)}"', X_Repo_Commit=self.revision(repo_id))
        return self.answer({"error": "Not found"}, 404)

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/").split("/")
        body = self.body()
        if path == ["api", "repos", "create"]:
            request = json.loads(body)
            repo_id = f"{request.get('organization') or 'me'}/{request['name']}"
            status = 409 if repo_id in self.server.repos else 200
            self.server.repos.setdefault(repo_id, {".gitattributes": b"*.zip filter=lfs diff=lfs merge=lfs -text\n"})
            return self.answer({"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}, status)
        if path == ["api", "validate-yaml"]:
            card = json.loads(body)["content"].split("---")[1]
            try:
                yaml.safe_load(card)
            except yaml.YAMLError as error:  # the real Hub refuses `!!python/object` like this
                return self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return self.answer({"errors": [], "warnings": []})
        if "preupload" in path:
            binary = (".zip", ".mp4", ".pth", ".pkl")
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(binary) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path[-2:] == ["objects", "batch"]:
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            return self.answer({"transfer": "basic", "objects": objects})
        if "commit" in path:
            repo_id = "/".join(path[2:4])
            files = self.server.repos[repo_id]
            changed = dict(files)
            for line in body.decode().splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    if value["oid"] not in self.server.lfs:
                        return self.answer({"error": "LFS object not found"}, 400)
                    changed[value["path"]] = self.server.lfs[value["oid"]]
                elif item["key"] == "deletedFile":
                    changed.pop(value["path"], None)
            self.server.repos[repo_id] = changed  # all or nothing
            self.server.commits.append(repo_id)
            oid = self.revision(repo_id)
            return self.answer(
                {"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True}
            )
        return self.answer({"error": "Not found"}, 404)

    def do_PUT(self) -> None:
        oid = self.path.rsplit("/", 1)[1]
        body = self.body()
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer({"error": "wrong content"}, 400)
        self.server.lfs[oid] = body
        return self.answer({})


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
