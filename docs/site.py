"""MkDocs hook: files of the repository that pages link to are put on the site, each at its path in the repository.

Pages link to figures, reports and sources outside of docs/ (`../../reports/figures/table1.png`), so that the links work
where the repository is shown. Here such a link is turned towards the file's place on the site. A Markdown file becomes
a page, any other file is copied when the site is built. A link to a file that is not there fails a strict build.

A notebook becomes a page too, with what its cells printed and drew when it was last run.

The page of `make play` is put on the site, and shown on docs/play.md, where it has been built.
"""

import base64
import json
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<after>(#[^)\s]*)?\))")
MARK = re.compile(r"^<!-- (index: .*|[\w@/.-]+:(begin|end)) -->\n", re.MULTILINE)
FOREIGN = re.compile(r"<(script|link|img|iframe|source|video|audio)\b[^>]*\b(src|href|srcset)=[\"']?(https?:)?//[^>]*>")
PLAY, PLACE = ROOT / "outputs/play", "<!-- the page -->\n"
FRAME = '<iframe src="play/index.html" title="Undistort what you draw" loading="lazy" class="play"></iframe>\n'
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds what pages link to, and what those pages link to in turn."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for name, content in read_notebook(Path(file.abs_src_path)).items():
            files.append(File.generated(config, posixpath.join(posixpath.dirname(file.src_uri), name), content=content))
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    for path in nav_paths(config.nav):
        waiting += add(path, files, config)
    while waiting:
        file = waiting.pop()
        for _, path in links(file.content_string, repository_path(file.src_uri)):
            waiting += add(path, files, config)
    if (PLAY / "facts.json").is_file():
        for path in sorted(PLAY.iterdir()):
            files.append(File.generated(config, f"play/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links that leave docs/, and drops the marks of generated blocks."""
    source = page.file.src_uri
    here = posixpath.dirname(source)

    def turned(match):
        path = resolve(match["target"], repository_path(source))
        if path is None:
            return match[0]
        return f"{match['before']}{posixpath.relpath(site_path(path), here or '.')}{match['after']}"

    if source == "play.md":
        markdown = markdown.replace(PLACE, FRAME if (PLAY / "facts.json").is_file() else "")
    if source.startswith("reports/"):
        page.meta.setdefault("search", {"exclude": True})  # tables of numbers, which the pages show in part
    parts = re.split(f"({FENCE.pattern})", MARK.sub("", markdown), flags=FENCE.flags)
    return "".join(part if part.startswith("```") else LINK.sub(turned, part) for part in parts)


def on_post_page(output, page, config):
    """Refuses a page that a browser could not show without another host."""
    foreign = FOREIGN.search(output)
    if foreign:
        raise PluginError(f"{page.file.src_uri}: loads something from another host: {foreign[0]}")
    return output


def read_notebook(path):
    """The Markdown page that a notebook is, and its pictures, by their names on the site."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts, pictures, heading = [], {}, path.stem
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            heading = (re.findall(r"^#+ (.*)$", source, re.MULTILINE) or [heading])[-1]
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in output.get("data", {}):
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![{heading}: what the code above draws]({name})")
    return {f"{path.stem}.md": "\n\n".join(parts) + "\n"} | pictures


def add(path, files, config):
    """Registers a file of the repository under its path; returns it if it is a page of its own."""
    name = site_path(path)
    if path.startswith("docs/") or files.get_file_from_path(name) or not (ROOT / path).is_file():
        return []
    file = File.generated(config, name, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    files.append(file)
    return [file] if name.endswith(".md") else []


def links(markdown, source):
    """The relative links of a page, each as (target, path in the repository)."""
    for match in LINK.finditer(FENCE.sub("", markdown)):
        path = resolve(match["target"], source)
        if path is not None:
            yield match["target"], path


def resolve(target, source):
    """The path in the repository that a link of the file `source` points to; None for a link to another host."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def repository_path(name):
    """Where a file of the site lies in the repository."""
    return name if (ROOT / name).is_file() and not (ROOT / "docs" / name).is_file() else f"docs/{name}"


def site_path(path):
    """Where a file of the repository lies on the site: pages of docs/ at its top, all else at its path."""
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def nav_paths(nav):
    """Files of the repository that the navigation names."""
    if isinstance(nav, str):
        return [] if (ROOT / "docs" / nav).exists() else [nav]
    parts = nav.values() if isinstance(nav, dict) else nav or ()
    return [path for part in parts for path in nav_paths(part)]
