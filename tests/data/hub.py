"""A small Hugging Face hub on loopback: one dataset in one revision."""

import hashlib
import http.server
import io
import json
import threading
import urllib.parse

from keras_qrnn.data.penn_treebank import HUB_NAME, HUB_REVISION

COMMIT = "c0ffee" + "0" * 34


def parquet(lines):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"sentence": lines}), buffer)
    return buffer.getvalue()


def penn_treebank(splits):
    """The files of Penn Treebank's revision with `splits` (name -> lines)."""
    return {
        f"penn_treebank/{split}/0000.parquet": parquet(lines)
        for split, lines in splits.items()
    }


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes); `requests` lists the paths asked for."""

    daemon_threads = True

    def __init__(self, files, name=HUB_NAME, revision=HUB_REVISION):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.name = name
        self.revision = revision
        self.requests = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        self.server.requests.append(path)
        name, revisions = self.server.name, (self.server.revision, COMMIT)
        api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
        if path in (api, *(f"{api}/revision/{revision}" for revision in revisions)):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer_json({"id": name, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"{api}/paths-info/"):
            self.answer_json([])
        elif path.startswith(f"{api}/tree/"):
            # .../tree/<revision>[/<directory>]
            for revision in revisions:
                if path.startswith(f"{api}/tree/{revision}"):
                    directory = path.removeprefix(f"{api}/tree/{revision}")
                    recursive = "recursive=true" in query.lower()
                    self.answer_tree(directory.strip("/"), recursive)
                    return
            self.answer(404, b"")
        elif path.startswith(resolve):
            for revision in revisions:
                name = path.removeprefix(f"{resolve}{revision}/")
                if name in self.server.files:
                    self.answer(200, self.server.files[name])
                    return
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    def answer_tree(self, directory, recursive):
        prefix = directory + "/" if directory else ""
        entries = {}
        for name, content in self.server.files.items():
            if not name.startswith(prefix):
                continue
            oid = hashlib.sha1(content).hexdigest()
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                path = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries[path] = {"type": "directory", "path": path, "oid": oid}
            if recursive or len(parts) == 1:
                entries[name] = {"type": "file", "path": name, "oid": oid}
                entries[name]["size"] = len(content)
        if entries:
            self.answer_json(list(entries.values()))
        else:
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})

    def answer_json(self, value):
        content = json.dumps(value).encode()
        self.answer(200, content, **{"Content-Type": "application/json"})

    def answer(self, status, content, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_POST(self):
        # paths-info: which of the asked paths exist
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        try:
            paths = json.loads(body).get("paths", [])
        except json.JSONDecodeError:
            paths = urllib.parse.parse_qs(body.decode()).get("paths", [])
        files = self.server.files
        self.answer_json(
            [
                {"type": "file", "path": p, "size": len(files[p]), "oid": "0" * 40}
                for p in paths
                if p in files
            ]
        )
