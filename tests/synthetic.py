"""Synthetic records whose geometry and errors are known, for the tests of the report."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates, zoom
from sklearn.datasets import load_digits

from stn.experiments import find_experiments, find_tables, load
from stn.experiments.addition.table import ADDITION
from stn.experiments.cub.parts import REGIONS
from stn.experiments.cub.table import BIRDS
from stn.experiments.mnist.table import SIZES
from stn.experiments.svhn.table import HOUSE_NUMBERS

PHOTOGRAPHS = "photographs, 128 px"
DERIVED = ("64 px strips", PHOTOGRAPHS)
SPECIES = np.array(["Black footed Albatross", "Laysan Albatross", "Groove billed Ani", "Crested Auklet"])
WHOLE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
POINTS = np.array([[x, y] for y in (-0.6, 0, 0.6) for x in (-0.6, 0, 0.6)])


# A distortion is a function from points of the canvas to points of the digit's own frame; the
# transformer of a record knows a share of the distortion's parameters, and so undoes that share of it.


def draw(column, n, rng):
    """Parameters of n distortions, one row each; all zeros is no distortion."""
    if column == "R":
        return rng.uniform(-90, 90, (n, 1))
    if column in ("RTS", "TC"):
        return np.column_stack(
            [rng.uniform(-45, 45, n), rng.uniform(np.log(0.7), np.log(1.2), n), rng.uniform(-7, 7, (n, 2))]
        )
    return rng.normal(0, 0.12, (n, 8))


def to_digit(column, parameters, points):
    """Points of the canvas in the digit's frame, under one distortion."""
    if column in ("R", "RTS", "TC"):
        angle, scale, x, y = np.pad(parameters, (0, 4 - len(parameters)))
        half = {"R": 14, "RTS": 21, "TC": 30}[column]
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        return (points * half - (x, y)) @ [[c, -s], [s, c]] / (14 * np.exp(scale))
    if column == "P":
        h = (
            np.column_stack([points, np.ones(len(points))])
            @ (np.eye(3) + np.append(parameters, 0).reshape(3, 3) * 0.8).T
        )
        return h[:, :2] / h[:, 2:] * 1.15
    waves = np.sin(points[:, :1] * 2.2 + [0, 1]) * np.cos(points[:, 1:] * 1.8 + [0, 1])
    return points * 1.15 + waves @ parameters[:4].reshape(2, 2) + (points * waves) * parameters[4:6]


def to_canvas(column, parameters, points):
    """The inverse of `to_digit`, by Newton's method with a numerical slope."""
    guess, step = points * 0.8, 1e-4
    for _ in range(12):
        value = to_digit(column, parameters, guess)
        slopes = [(to_digit(column, parameters, guess + np.eye(2)[i] * step) - value) / step for i in (0, 1)]
        guess = guess - np.linalg.solve(np.stack(slopes, -1), (value - points)[..., None])[..., 0]
    return guess


def pixels(size):
    centres = (2 * np.arange(size) + 1) / size - 1
    return np.stack(np.meshgrid(centres, centres), -1)


def look(image, points):
    """Bilinear samples of an image at normalised points, black outside."""
    at = ((points[..., ::-1] + 1) * len(image) - 1) / 2
    return map_coordinates(image.astype(float), np.moveaxis(at, -1, 0), order=1)


def embedded_digits():
    """The digits 0..9 that ship inside scikit-learn, as 28x28."""
    data = load_digits()
    first = [data.images[np.flatnonzero(data.target == digit)[0]] for digit in range(10)]
    return [np.pad(np.clip(zoom(image, 2.5, order=1) * 16, 0, 255), 4) for image in first]


@cache
def geometry(column, knows, n, turn=0.0):
    """The arrays of an ST record that finds the share `knows` of each distortion, up to a constant turn."""
    rng, digits = np.random.default_rng(list(column.encode())), embedded_digits()
    size = {"RTS": 42, "TC": 60}.get(column, 28)
    true = draw(column, n, rng)
    found = knows * true + rng.normal(0, 0.02, true.shape) * (knows < 1)
    labels = np.arange(10)
    inputs, grids, outputs = [], [], []
    for digit in labels:
        canvas = look(digits[digit], to_digit(column, true[digit], pixels(size).reshape(-1, 2))).reshape(size, size)
        grid = to_canvas(column, found[digit], pixels(size).reshape(-1, 2)).reshape(size, size, 2)
        output = look(canvas, grid)
        if column in ("RTS", "TC"):
            output = output.reshape(size // 2, 2, size // 2, 2).mean((1, 3))
        inputs, grids, outputs = [*inputs, canvas], [*grids, grid], [*outputs, output]
    names = {"R": ["angle"], "RTS": ["angle", "scale", "x", "y"], "TC": ["x", "y"]}.get(column, [])
    pose = {"angle": (0, lambda v: v), "scale": (1, np.exp), "x": (2, lambda v: v), "y": (3, lambda v: v)}
    columns = [[pose[name][1](table[:, pose[name][0]]) for name in names] for table in (true, found)]
    pose_true, pose_found = (np.array(part, np.float32).reshape(len(names), n).T for part in columns)
    if "angle" in names:
        pose_found[:, 0] = (pose_found[:, 0] + turn + 180) % 360 - 180
    after = [to_digit(column, t, to_canvas(column, f, POINTS)) for t, f in zip(true, found, strict=True)]
    return names, {
        "theta": np.zeros((n, 6), np.float16),
        "example_input": np.array(inputs).round().astype(np.uint8),
        "example_grid": np.array(grids, np.float16),
        "example_output": np.array(outputs).round().astype(np.uint8),
        "example_label": labels,
        "pose_true": pose_true,
        "pose_found": pose_found,
        "cloud_before": np.array([to_digit(column, t, POINTS) for t in true], np.float16),
        "cloud_after": np.array(after, np.float16),
    }


@cache
def house_numbers(size, transformers, knows, n):
    """The arrays of an ST record whose windows go, one after the other, the share `knows` of the way to the number."""
    rng, digits = np.random.default_rng(size), embedded_digits()
    corner, sides = rng.uniform(-1, (0, 0.5), (n, 2)), np.array([1.0, 0.5])
    box = np.column_stack([corner, corner + sides])
    ends = box[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    shares = knows * (np.arange(transformers) + 1)[:, None, None] / transformers
    windows = (WHOLE * (1 - shares))[None] + ends[:, None] * shares
    labels, inputs, handed_on = np.full((10, 5), 10, np.uint8), [], []
    for i in range(10):
        count = i % 3 + 1
        labels[i, :count] = rng.integers(0, 10, count)
        at = (pixels(size) - box[i, :2]) / sides * (count, 1)  # the box in units of a digit
        ink = np.zeros((size, size))
        for place, digit in enumerate(labels[i, :count]):
            ink += look(digits[digit], (at - (place, 0)) * 2 - 1) / 255
        paper, pen = rng.uniform((90, 70, 60), 140, 3), rng.uniform(200, 255, 3)
        image = (paper + 30 * pixels(size)[..., 1:]) * (1 - ink[..., None]) + pen * ink[..., None]
        inputs.append(image)
        low, high = windows[i, -1].min(0), windows[i, -1].max(0)
        grid = low + (pixels(size) + 1) / 2 * (high - low)
        handed_on.append(np.stack([look(channel, grid) for channel in np.moveaxis(image, -1, 0)], -1))
    said = labels.copy()
    said[[1, 3, 4], [1, 0, 0]] = (10, 10, 10)  # a digit lost, nothing read, a gap
    return {
        "example_input": np.array(inputs).round().astype(np.uint8),
        "example_label": labels,
        "example_said": said,
        "example_windows": windows[:10].astype(np.float16),
        "example_seen": np.array(handed_on).round().astype(np.uint8),
        "window_all": windows.astype(np.float16),
        "box": box.astype(np.float16),
    }


@cache
def birds(transformers, knows, n):
    """The arrays of an ST record of birds whose first window goes the share `knows` of the way to the head.

    The second goes to the body, the others stay at their tiles; a window that arrives holds all of its parts. Every
    fourth bird hides its throat. One colour is the head's, another the body's. Every third example is said wrong.
    """
    rng = np.random.default_rng(3)
    head = rng.uniform(-0.4, 0.4, (n, 2))
    body = head + [0.1, 0.9] * np.sign(-head)  # far enough for one window not to reach both
    names = sorted(REGIONS["head"] + REGIONS["body"])
    middle = np.stack([head if name in REGIONS["head"] else body for name in names], 1)
    parts = middle + rng.uniform(-0.3, 0.3, middle.shape)
    parts[::4, names.index("throat")] = np.nan
    tiles = np.array([[x, y] for y in ([-0.5, 0.5] if transformers == 4 else [0.0]) for x in (-0.5, 0.5)])
    centres = np.repeat(tiles[None], n, 0)
    centres[:, 0] += knows * (head - centres[:, 0])
    centres[:, 1] += knows * (body - centres[:, 1])
    windows = (centres[:, :, None] + WHOLE / 2).astype(np.float16)
    shown, away = np.arange(8) * n // 8, np.stack([pixels(128)] * 8)
    inputs = np.full((8, 128, 128, 3), (150, 175, 140))
    for at, colour, size in ((body, (90, 70, 50), 0.4), (head, (200, 60, 40), 0.25)):
        inputs[np.linalg.norm(away - at[shown, None, None], axis=-1) < size] = colour
    label = np.arange(8) % 4
    said = np.where(np.arange(8) % 3, label, (label + 1) % 4)
    ways = np.linspace(0, 1, 4)[:, None, None]  # the windows of the first six, from their tiles to where they end
    trace = (tiles.ravel() + ways * (centres[:6].reshape(6, -1) - tiles.ravel())).astype(np.float32)
    return {
        "trace": trace,
        "trace_steps": np.arange(4) * 500,
        "trace_input": inputs[:6].astype(np.uint8),
        "theta": centres.reshape(n, -1).astype(np.float16),
        "example_input": inputs.astype(np.uint8),
        "example_label": label,
        "example_said": said,
        "example_name": SPECIES[label],
        "example_said_name": SPECIES[said],
        "example_windows": windows[shown],
        "window_all": windows,
        "parts": parts.astype(np.float16),
        "part_names": np.array(names),
    }


@cache
def pairs(transformers, knows, n):
    """The arrays of an ST record of sums: each transformer finds the share `knows` of the pose of one digit of a pair.

    The first one finds the first digit's, the second one the second's. Every second example is said wrong.
    """
    rng, digits = np.random.default_rng(4), embedded_digits()
    true = np.stack([draw("RTS", n, rng) for _ in range(2)], 1)
    found, grid = knows * true, pixels(42).reshape(-1, 2)
    show = np.array([[7, 2], [4, 9], [5, 3], [1, 8]])
    inputs, grids, outputs = np.zeros((4, 2, 42, 42)), np.zeros((4, transformers, 42, 42, 2)), []
    for i, pair in enumerate(show):
        for d, digit in enumerate(pair):
            inputs[i, d] = look(digits[digit], to_digit("RTS", true[i, d], grid)).reshape(42, 42)
        for k in range(transformers):
            grids[i, k] = to_canvas("RTS", found[i, k], grid).reshape(42, 42, 2)
            seen = [look(inputs[i, d], grids[i, k]).reshape(21, 2, 21, 2).mean((1, 3)) for d in range(2)]
            outputs.append(seen)
    after = [
        [[to_digit("RTS", t[d], to_canvas("RTS", f[k], POINTS)) for d in range(2)] for k in range(transformers)]
        for t, f in zip(true, found, strict=True)
    ]
    return {
        "theta": np.zeros((n, transformers, 6), np.float16),
        "example_input": inputs.round().astype(np.uint8),
        "example_digits": show,
        "example_said": show.sum(1) + np.array([0, 1, 0, 1]),
        "example_grid": grids.astype(np.float16),
        "example_output": np.reshape(outputs, (4, 2 * transformers, 21, 21)).round().astype(np.uint8),
        "pair_before": np.array([[to_digit("RTS", t, POINTS) for t in both] for both in true], np.float16),
        "pair_after": np.array(after, np.float16),
    }


def find_table(row, column):
    """The first table that has a row and a column of these labels."""
    for table in find_tables().values():
        if row in [one.label for one in table.rows] and column in [one.label for one in table.columns]:
            return table
    raise KeyError((row, column))


def write_cell(folder, row, column, errors, n_test=10000, knows=0.9, n=60, turn=0.0, weights=None, **changes):
    """One record under `folder`, its NPZ beside it; `errors` has one count for each seed. Returns the JSON's path."""
    rng = np.random.default_rng(7)
    table = find_table(row, column)
    cell = table.row(row).cells(table.column(column))[0]
    data, model = cell.data, cell.model
    kind = next(kind for kind in find_experiments() if table in load(kind, "table").TABLES)
    names, arrays = [], {}
    if not table.row(row).transformer:
        pass
    elif table is HOUSE_NUMBERS:
        arrays.update(
            house_numbers(int(re.search(r"(\d+) px", column)[1]), 4 if row.endswith("Multi") else 1, knows, n_test)
        )
    elif table is BIRDS:
        arrays.update(birds(int(row[0]), 0.0 if row.endswith("fixed") else knows, n_test))
    elif table is ADDITION:
        arrays.update(pairs(2 if row.startswith("2x") else 1, knows, n))
    else:
        names, known = geometry(column, knows, n, turn)
        arrays.update(known)
        if row.endswith("learned"):
            arrays |= {"phi_x": np.float32([-0.1, 0, 0.4, 1.1, 0.4, 0, -0.1]), "phi_y": np.ones(7, np.float32)}
    batch = changes.get("config", {}).get("budget", {}).get("batch_size", 256)
    seeds = []
    for seed, count in enumerate(errors):
        correct = np.ones(n_test, bool)
        correct[rng.choice(n_test, count, replace=False)] = False
        arrays[f"correct_s{seed}"] = correct
        seeds.append(
            {
                "seed": seed,
                "error": 100 * count / n_test,
                "errors": count,
                "n_test": n_test,
                "steps": 2000,
                "images_seen": 2000 * batch,
                "seconds": 77.5,
                "validation": [[1000, 3.0, 0.1], [2000, 2.0, 0.07]],
                "provenance": {
                    "date": "2025-01-01",
                    "host": "a",
                    "cpu": "AMD EPYC 9V74",
                    "cores": 2,
                    "threads": 1,
                    "gpu": None,
                    "precision": "bf16-mixed",
                    "python": "3.11.7",
                    "torch": "2.13.0",
                    "lightning": "2.6.1",
                    "stn": "0.1.0",
                    **({"weights": weights} if weights else {}),
                },
            }
        )
    if table is HOUSE_NUMBERS:  # every error is one of the first place, every second one of the last as well
        wrong = np.flatnonzero(~arrays["correct_s0"])
        arrays["positions"] = np.ones((n_test, 5), bool)
        arrays["positions"][wrong, 0] = arrays["positions"][wrong[::2], 4] = False
    record = {
        "schema": 1,
        "budget": "quick",
        "data": data,
        "model": model,
        "complete": True,
        "part": None,
        "parameters": 208586 if column in ("R", "P", "E") else 135498,
        "multiply_adds": 5300000,
        "n_test": n_test,
        "config": {"data": {"kind": kind}, "model": {"filters": 64, "localisation": {"filters": 20}}, "seeds": [0]},
        "seeds": seeds,
        "pose_names": names,
    }
    record.update(changes)
    path = Path(folder) / f"{cell.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return path


def write_table(folder, columns=("R", "RTS", "P", "E"), **changes):
    """All cells of the columns: every ST row halves its baseline's errors, but ST-FCN TPS on E, which does not win."""
    paths = []
    table = find_table("CNN", columns[0])
    for row in [row for row in table.rows if row.model and not row.on_demand]:
        for column in [column for column in columns if row.cells(table.column(column))]:
            errors = (400 if "FCN" in row.label else 200) // (2 if row.baseline else 1)
            if (row.label, column) == ("ST-FCN TPS", "E"):
                errors = 420
            paths.append(write_cell(folder, row.label, column, [errors], n=20, **changes))
    return paths


def write_sizes(folder, exported=True):
    """All cells of Table 8. Errors in % fall with size; an ST-CNN beats the CNN ten times its size, not the smallest.

    On RTS int8 loses a point, and the last cell is not exported.
    """
    paths = []
    for i, row in enumerate(SIZES.rows):
        size, st = i // 2, i % 2
        for column in SIZES.columns:
            row_column = row.label, column.label
            errors = [2000, 1200, 600, 400, 300, 250][size] - st * [-100, 600, 320, 200, 150, 100][size]
            changes = {"parameters": 2500 * 3**size, "multiply_adds": 200_000 * 3**size // (1 + st)}
            paths.append(write_cell(folder, *row_column, [errors], n=20, **changes))
            if exported and row_column != (SIZES.rows[-1].label, "RTS"):
                write_export(paths[-1], errors + 100 * (column.label == "RTS"))
    return paths


def write_export(cell, int8, **changes):
    """What `stn.export` leaves beside a cell; int8 makes so many errors."""
    record = json.loads(cell.read_text())
    seed, n, size = record["seeds"][0], record["n_test"], record["parameters"]
    runs = {}
    for i, (name, errors) in enumerate({"torch": seed["errors"], "float32": seed["errors"], "int8": int8}.items()):
        runs[name] = {"error": 100 * errors / n, "errors": errors, "agreement": 100.0 if i < 2 else 98.5}
        runs[name]["latency"] = {"median": 0.4 / (i + 1), "low": 0.1, "high": 0.5, "n": 500}
        runs[name] |= {"bytes": 8000 + 4 * size // i**2} if i else {}
    export = {"schema": 1, "data": record["data"], "model": record["model"], "tested": record["data"]}
    export |= {"config": record["config"], "n_test": n, "parameters": size, "calibration": 500, "runs": runs}
    export["trained"] = {"seed": seed["seed"], "date": seed["provenance"]["date"], "errors": seed["errors"]}
    export["provenance"] = {"cpu": "AMD EPYC 9V74", "onnxruntime": "1.32.0"}
    path = cell.with_name(f"{cell.stem}-export.json")
    path.write_text(json.dumps(export | changes))
    return path


def check_tex(text, rows):
    """That a LaTeX table is balanced, escaped, ASCII and has so many rows."""
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert opened == ["table", "tabular"] and re.findall(r"\\end\{(\w+)\}", text) == opened[::-1]
    assert text.count("{") == text.count("}") and text.isascii()
    body = text.partition(r"\begin{tabular}")[2]
    cells = [line.count("&") for line in body.splitlines() if line.endswith(r"\\")]
    assert len(cells) == 1 + rows and len(set(cells)) == 1
    assert not re.search(r"(?<!\\)[%_#]", "\n".join(text.splitlines()[1:])) and text.count("$") % 2 == 0
