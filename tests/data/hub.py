"""A small Hugging Face hub on loopback: data sets, each in one revision."""

import hashlib
import http.server
import io
import json
import threading
import urllib.parse

COMMIT = "c0ffee" + "0" * 34


def parquet(**columns):
    """A Parquet file with `columns` (name -> values)."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


class Hub(http.server.ThreadingHTTPServer):
    """Serves `datasets`: name -> (revision, files), with files: path -> bytes.

    `requests` lists the paths that were asked for.
    """

    daemon_threads = True

    def __init__(self, datasets):
        super().__init__(("127.0.0.1", 0), Handler)
        self.datasets = datasets
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
        for name, (revision, files) in self.server.datasets.items():
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve"
            if path == api:
                self.answer_description(name, files)
                return
            for known in (revision, COMMIT):
                tree = f"{api}/tree/{known}"
                if path == f"{api}/revision/{known}":
                    self.answer_description(name, files)
                elif path.startswith(f"{api}/paths-info/{known}"):
                    self.answer_json([])
                elif path.startswith(tree):
                    directory = path.removeprefix(tree).strip("/")
                    recursive = "recursive=true" in query.lower()
                    self.answer_tree(files, directory, recursive)
                elif path.startswith(f"{resolve}/{known}/"):
                    self.answer_file(files, path.removeprefix(f"{resolve}/{known}/"))
                else:
                    continue
                return
        self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        """`paths-info`: which of the asked paths exist."""
        path = urllib.parse.unquote(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            asked = json.loads(body).get("paths", [])
        except json.JSONDecodeError:
            asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
        (files,) = (
            files
            for name, (_, files) in self.server.datasets.items()
            if path.startswith(f"/api/datasets/{name}/")
        )
        self.answer_json(
            [
                {"type": "file", "path": p, "size": len(files[p]), "oid": "0" * 40}
                for p in asked
                if p in files
            ]
        )

    def answer_description(self, name, files):
        siblings = [{"rfilename": path} for path in files]
        self.answer_json({"id": name, "sha": COMMIT, "siblings": siblings})

    def answer_tree(self, files, directory, recursive):
        """The entries of `.../tree/<revision>[/<directory>]`."""
        prefix = directory + "/" if directory else ""
        entries = {}
        for name, content in files.items():
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

    def answer_file(self, files, path):
        if path in files:
            self.answer(200, files[path])
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
