// Points are (x, y), x to the right and y down. Three frames: "canvas", pixels from the middle of the image; "digit",
// pixels from the middle of a frame of 28 x 28 in which digits lie as MNIST's do; "output", [-1, 1] from edge to edge of
// what a transformer hands on. A map is [a, b, x, c, d, y]: (u, v) to (a u + b v + x, c u + d v + y).
import * as ort from "./onnxruntime.js";

const $ = (selector) => document.querySelector(selector);
const DIGIT = 28, INK_BOX = 20; // sides of MNIST's images, and of the box that its digits fill
const PEN = 3, EDGE = 1.3; // width of a stroke in pixels of the canvas; of its soft edge, in pixels of the digit
const UPRIGHT = { rotation: 0, scale: 1, x: 0, y: 0, slant: 0 };
const HANDLES = { rotate: [0, -19], scale: [14, 14], slant: [-14, -14] }; // in the digit's frame
const REST = 700; // ms without a change, after which a screen reader is told
const ROUND = 9000; // ms that the digit wanders

const pose = { ...UPRIGHT, rotation: 34, scale: 0.86, x: 4, y: -3 };
let facts, networks = [], digits = [];
let digit = null; // the digit of MNIST that is shown: { label, pixels }; or null, and what was drawn:
let strokes = []; // each { points: [[u, v], ...], width } in the digit's frame
let pixels, results = [], frames = 0, wanderedFrom = null;

// ---- maps

const radians = (degrees) => (degrees * Math.PI) / 180;
const degrees = (angle) => (angle * 180) / Math.PI;
const apply = ([a, b, x, c, d, y], [u, v]) => [a * u + b * v + x, c * u + d * v + y];
const compose = ([a, b, x, c, d, y], [e, f, u, g, h, v]) =>
  [a * e + b * g, a * f + b * h, a * u + b * v + x, c * e + d * g, c * f + d * h, c * u + d * v + y];

function invert([a, b, x, c, d, y]) {
  const determinant = a * d - b * c;
  const [e, f, g, h] = [d / determinant, -b / determinant, -c / determinant, a / determinant];
  return [e, f, -(e * x + f * y), g, h, -(g * x + h * y)];
}

/** The map from digit to canvas of a pose: slant first, then scale and rotation (counter-clockwise), then place. */
function placed({ rotation, scale, x, y, slant }) {
  const cos = scale * Math.cos(radians(rotation)), sin = scale * Math.sin(radians(rotation));
  const k = Math.tan(radians(slant));
  return [cos, sin - k * cos, x, -sin, cos + k * sin, y];
}

/** The pose of such a map, as `stn.playground.read_poses`. */
function read([a, b, x, c, d, y]) {
  const determinant = a * d - b * c;
  const slant = degrees(Math.atan2(-(a * b + c * d), determinant));
  return { rotation: degrees(Math.atan2(-c, a)), scale: Math.sqrt(Math.abs(determinant)), x, y, slant };
}

// ---- the image

/** How dark the digit is at the points of the canvas's pixels, in [0, 1]. */
function render() {
  const side = facts.canvas, image = new Float32Array(side * side), back = invert(placed(pose));
  if (digit) {
    for (let i = 0; i < image.length; i++) {
      const point = [(i % side) + 0.5 - side / 2, Math.floor(i / side) + 0.5 - side / 2];
      image[i] = bilinear(digit.pixels, ...apply(back, point));
    }
  }
  for (const stroke of strokes) drawStroke(image, side, stroke, back);
  return image;
}

function bilinear(values, u, v) {
  const x = u + DIGIT / 2 - 0.5, y = v + DIGIT / 2 - 0.5, left = Math.floor(x), top = Math.floor(y);
  let sum = 0;
  for (let j = top; j < top + 2; j++) {
    for (let i = left; i < left + 2; i++) {
      if (i < 0 || j < 0 || i >= DIGIT || j >= DIGIT) continue;
      sum += values[j * DIGIT + i] * (1 - Math.abs(x - i)) * (1 - Math.abs(y - j));
    }
  }
  return sum;
}

/** A line with round ends and soft edges: pixels near to it, by their distance in the digit's frame. */
function drawStroke(image, side, { points, width }, back) {
  const forward = placed(pose), reach = (width / 2 + EDGE) * pose.scale * 1.6 + 1; // a slant stretches it
  const clamp = (value) => Math.max(0, Math.min(side, value));
  points.forEach((end, n) => {
    const start = points[Math.max(n - 1, 0)];
    const [[x0, y0], [x1, y1]] = [apply(forward, start), apply(forward, end)];
    const [du, dv] = [end[0] - start[0], end[1] - start[1]], length = du * du + dv * dv;
    const [low, high] = [Math.min, Math.max].map((of, i) => {
      const far = side / 2 + (i ? reach : -reach);
      return [Math.floor(clamp(of(x0, x1) + far)), Math.floor(clamp(of(y0, y1) + far))];
    });
    for (let j = low[1]; j < high[1]; j++) {
      for (let i = low[0]; i < high[0]; i++) {
        const [u, v] = apply(back, [i + 0.5 - side / 2, j + 0.5 - side / 2]);
        const along = length ? Math.max(0, Math.min(1, ((u - start[0]) * du + (v - start[1]) * dv) / length)) : 0;
        const distance = Math.hypot(u - start[0] - along * du, v - start[1] - along * dv);
        const value = Math.max(0, Math.min(1, 0.5 + (width / 2 - distance) / EDGE));
        image[j * side + i] = Math.max(image[j * side + i], value);
      }
    }
  });
}

/** Gives what was drawn the pose that MNIST would: its box has a side of 20, its centre of mass is the middle. */
function centre() {
  const low = [Infinity, Infinity], high = [-Infinity, -Infinity], sum = [0, 0];
  let mass = 0;
  for (const { points, width } of strokes) {
    points.forEach((end, n) => {
      const start = points[Math.max(n - 1, 0)];
      const weight = width * (Math.hypot(end[0] - start[0], end[1] - start[1]) + 1e-3);
      mass += weight;
      for (const i of [0, 1]) {
        sum[i] += (weight * (start[i] + end[i])) / 2;
        low[i] = Math.min(low[i], end[i] - width / 2);
        high[i] = Math.max(high[i], end[i] + width / 2);
      }
    });
  }
  if (!mass) return;
  const middle = sum.map((value) => value / mass), before = placed(pose);
  const size = Math.max(high[0] - low[0], high[1] - low[1]);
  const scale = limit("scale", (pose.scale * size) / INK_BOX), factor = pose.scale / scale;
  for (const stroke of strokes) {
    stroke.points = stroke.points.map(([u, v]) => [(u - middle[0]) * factor, (v - middle[1]) * factor]);
    stroke.width *= factor;
  }
  const [x, y] = apply(before, middle);
  Object.assign(pose, { scale, x, y });
}

// ---- the networks

async function fetched(name, how) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response[how]();
}

/** A packed file, whether the server has unpacked it on the way or not. */
async function unpacked(name) {
  const bytes = await fetched(name, "arrayBuffer");
  if (new Uint8Array(bytes, 0, 1)[0] !== 0x1f) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function load() {
  const runtime = unpacked("onnxruntime.wasm.gz");
  runtime.catch(() => {}); // told below
  facts = await fetched("facts.json", "json");
  const graphs = facts.networks.map(({ file }) => fetched(file, "arrayBuffer"));
  digits = facts.digits.map(({ label, pixels }) =>
    ({ label, pixels: Float32Array.from(atob(pixels), (letter) => letter.charCodeAt(0) / 255) }));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await runtime;
  for (const [i, graph] of (await Promise.all(graphs)).entries()) {
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    networks.push({ ...facts.networks[i], session });
  }
}

/** What a network makes of the image: scores, probabilities, best class; its grid and the pose that it found. */
async function ask(network) {
  const input = new ort.Tensor("float32", pixels, [1, 1, facts.canvas, facts.canvas]);
  const { scores, seen, grid } = await network.session.run({ images: input });
  const top = Math.max(...scores.data), powers = Array.from(scores.data, (score) => Math.exp(score - top));
  const total = powers.reduce((sum, power) => sum + power);
  const result = {
    scores: Array.from(scores.data), chances: powers.map((power) => power / total),
    best: scores.data.indexOf(top), seen: seen?.data ?? pixels, side: seen?.dims[2] ?? facts.canvas,
  };
  return grid ? { ...result, grid: grid.data, points: grid.dims[1], found: locate(grid.data, grid.dims[1], network.canonical) } : result;
}

/** The map from digit to canvas by a grid: affine, through nine of its points, after the network's own choice of pose. */
function locate(grid, points, canonical) {
  const at = [0.2, 0.5, 0.8].map((share) => share * (points - 1)), map = [0, 0, 0, 0, 0, 0];
  for (const j of at) {
    for (const i of at) {
      const u = (2 * i) / (points - 1) - 1, v = (2 * j) / (points - 1) - 1;
      for (const axis of [0, 1]) {
        const value = (grid[2 * (Math.round(j) * points + Math.round(i)) + axis] * facts.canvas) / 2;
        map[3 * axis] += (value * u) / 2.16; // the sum of u * u over the nine points
        map[3 * axis + 1] += (value * v) / 2.16;
        map[3 * axis + 2] += value / 9;
      }
    }
  }
  const digitOf = canonical.map((value) => (value * DIGIT) / 2); // from output to digit
  return compose(map, invert(digitOf));
}

// ---- what is shown

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (name) => [1, 3, 5].map((i) => parseInt(css(name).slice(i, i + 2), 16));

function paint(canvas, values, side) {
  const [paper, ink] = [rgb("--paper"), rgb("--ink")], data = new ImageData(side, side);
  for (let i = 0; i < values.length; i++) {
    const value = Math.max(0, Math.min(1, values[i]));
    for (let j = 0; j < 3; j++) data.data[4 * i + j] = paper[j] + (ink[j] - paper[j]) * value;
    data.data[4 * i + 3] = 255;
  }
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(data, 0, 0);
}

/** The image, faint, under the lines of the grid that a network lays on it. */
function paintGrid(canvas, { grid, points }, colour) {
  const side = Math.round(canvas.clientWidth * devicePixelRatio), context = canvas.getContext("2d");
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const unit = side / 2.6, half = side / 2; // a grid may reach beyond the image
  context.clearRect(0, 0, side, side);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = grid ? 0.6 : 1;
  context.drawImage($("#image"), half - unit, half - unit, 2 * unit, 2 * unit);
  context.globalAlpha = 1;
  context.strokeStyle = css("--line");
  context.lineWidth = devicePixelRatio;
  context.strokeRect(half - unit, half - unit, 2 * unit, 2 * unit);
  if (!grid) return;
  context.strokeStyle = colour;
  context.lineJoin = "round";
  for (let line = 0; line < points; line += 5) {
    context.lineWidth = devicePixelRatio * (line % (points - 1) ? 1 : 2);
    for (const across of [true, false]) {
      context.beginPath();
      for (let i = 0; i < points; i++) {
        const at = 2 * (across ? line * points + i : i * points + line);
        context.lineTo(half + unit * grid[at], half + unit * grid[at + 1]);
      }
      context.stroke();
    }
  }
}

const number = (value, places, unit = "") => `${value.toFixed(places).replace(/^-(0\.?0*)$/, "$1").replace("-", "−")}${unit}`;
const shown = {
  rotation: (value) => number(value, 0, "°"), scale: (value) => number(value, 2), x: (value) => number(value, 1, " px"),
  y: (value) => number(value, 1, " px"), slant: (value) => number(value, 0, "°"),
};
const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const path = (points) => `M${points.map((point) => point.map((value) => value.toFixed(3))).join("L")}Z`;
const quad = (map) => path([[-14, -14], [14, -14], [14, 14], [-14, 14]].map((corner) => apply(map, corner)));

/** One sentence or three: how the digit lies, what the networks do about it, and what they read. */
function describe() {
  if (!digit && !strokes.length) return "Nothing is drawn yet. Choose Draw and write a digit, or take one of MNIST’s.";
  const how = [];
  const { rotation, scale, x, y, slant } = pose, away = Math.hypot(x, y);
  if (Math.abs(rotation) >= 1) how.push(`turned ${Math.abs(rotation).toFixed(0)}° ${rotation > 0 ? "counter-clockwise" : "clockwise"}`);
  if (Math.abs(scale - 1) >= 0.02) how.push(`${scale < 1 ? "shrunk" : "enlarged"} to ${(100 * scale).toFixed(0)} %`);
  if (Math.abs(slant) >= 1) how.push(`slanted by ${Math.abs(slant).toFixed(0)}°`);
  if (away >= 0.5) how.push(`${away.toFixed(0)} pixels off the middle`);
  const name = digit ? `This ${digit.label}` : "Your digit";
  const sentences = [`${name} is ${list(how) || "upright, in the middle and of MNIST’s size"}.`];
  const turns = networks.flatMap(({ name }, i) => (results[i].found ? [`${name} ${shown.rotation(Math.sign(rotation) * read(results[i].found).rotation)}`] : []));
  if (turns.length && Math.abs(rotation) >= 5) sentences.push(`Of the turn, ${list(turns.map((turn, i) => (i ? turn : turn.replace(" ", " finds "))))}.`);
  const readers = new Map();
  results.forEach(({ best }, i) => readers.set(best, [...(readers.get(best) ?? []), networks[i].name]));
  const groups = [...readers].map(([best, names]) => `${list(names)} read${names.length > 1 ? "" : "s"} ${best}`);
  sentences.push(readers.size === 1 && networks.length > 1 ? `All ${networks.length} read ${results[0].best}.` : `${list(groups)}.`);
  const [low, high] = facts.scale;
  const beyond = [Math.abs(rotation) > facts.rotation && `turned beyond ${facts.rotation}°`, Math.abs(slant) >= 1 && "slanted", (scale < low || scale > high) && "of this size"].filter(Boolean);
  if (beyond.length) sentences.push(`No digit in training was ${list(beyond)}.`);
  return sentences.join(" ");
}

/** The sliders at the pose. A key moves a slider from where it stands, so they must not wait for the networks. */
function setSliders() {
  for (const input of document.querySelectorAll("input[type=range]")) {
    input.value = pose[input.name];
    const text = shown[input.name](pose[input.name]);
    input.previousElementSibling.textContent = text;
    input.setAttribute("aria-valuetext", text);
  }
}

function show() {
  const frame = placed(pose);
  $("#outline").setAttribute("d", quad(frame));
  $("#stem").setAttribute("d", path([apply(frame, [0, -14]), apply(frame, HANDLES.rotate)]));
  for (const [name, point] of Object.entries(HANDLES)) {
    const spot = apply(frame, point).map((value) => Math.max(-20, Math.min(20, value))); // never out of reach
    $(`[data-handle=${name}]`).setAttribute("transform", `translate(${spot})`);
  }
  setSliders();
  digits.forEach((each, i) => $("#digits").children[i].setAttribute("aria-pressed", each === digit));
  const empty = !digit && !strokes.length;
  fillRow($("#poses").rows[0], empty ? null : pose);
  networks.forEach((network, i) => {
    const result = results[i], { grid, seen, best, chance, bars, quad: outline, row } = network.parts;
    paintGrid(grid, result, css(`--${network.model}`));
    paint(seen, result.seen, result.side);
    best.textContent = empty ? "–" : result.best;
    chance.textContent = empty ? "" : `${(100 * result.chances[result.best]).toFixed(0)} %`;
    result.chances.forEach((share, digit) => {
      bars.children[digit].style.setProperty("--p", empty ? 0 : share.toFixed(3));
      bars.children[digit].classList.toggle("first", !empty && digit === result.best);
    });
    if (result.found) {
      outline.setAttribute("d", empty ? "" : quad(result.found));
      fillRow(row, empty ? null : read(result.found));
    }
  });
  $("#words").textContent = describe();
  clearTimeout(show.timer);
  show.timer = setTimeout(() => {
    if (wanderedFrom === null) $("#spoken").textContent = describe();
  }, REST);
}

function fillRow(row, values) {
  Object.keys(shown).forEach((name, i) => (row.cells[i + 1].textContent = values ? shown[name](values[name]) : "–"));
}

/** Everything that depends on which networks there are. */
function furnish() {
  const add = (parent, tag, properties = {}, text = "") =>
    parent.appendChild(Object.assign(document.createElement(tag), { ...properties, textContent: text }));
  const row = (name, model) => {
    const line = $("#poses").insertRow();
    add(line, "th", { scope: "row" }, name);
    if (model) line.style.setProperty("--colour", `var(--${model})`);
    Object.keys(shown).forEach(() => line.insertCell());
    return line;
  };
  row("true");
  $(".results").style.setProperty("--count", networks.length);
  networks.forEach((network, i) => {
    const { model, name, canonical } = network;
    const box = add($(".results"), "article", { className: "network", ariaLabel: name });
    box.style.setProperty("--colour", `var(--${model})`);
    box.style.setProperty("--column", i + 1);
    const title = add(box, "h3", {}, name);
    add(title, "span", {}, canonical ? "transformer" : "no transformer");
    const grid = add(box, "canvas", { className: "grid", role: "img", ariaLabel: canonical ? `the grid of ${name} on the image` : "the image, without a grid" });
    const seen = add(box, "canvas", { className: "seen", role: "img", ariaLabel: `what the classifier of ${name} sees` });
    const answer = add(box, "p", { className: "answer" });
    const [best, chance] = [add(answer, "b"), add(answer, "span")];
    const bars = add(box, "ol", { className: "bars", ariaHidden: "true" });
    for (let digit = 0; digit < 10; digit++) add(bars, "li", {}, digit);
    const record = add(box, "p", { className: "record" });
    add(record, "b", {}, `${network.error.toFixed(2)} %`);
    add(record, "span", {}, `${network.budget}, ${network.steps.toLocaleString("en")} steps of ${network.batch}`);
    network.parts = { grid, seen, best, chance, bars };
    if (canonical) {
      network.parts.row = row(name, model);
      network.parts.quad = $("#quads").appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
      network.parts.quad.style.stroke = `var(--${model})`;
      add($("#keys"), "span", { className: "key" }, name).style.setProperty("--colour", `var(--${model})`);
    }
  });
  for (const each of digits) {
    const button = add($("#digits"), "button", { ariaLabel: `a test digit: ${each.label}` });
    each.canvas = add(button, "canvas");
    button.onclick = () => touch(() => ((digit = each), (strokes = [])));
  }
  paintDigits();
  const found = networks.filter(({ rms }) => rms);
  const misses = found.map(({ name, rms }) => `${name} ${rms.angle.toFixed(1)}°, ${(100 * rms.scale).toFixed(0)} % and ${rms.place.toFixed(1)} px`);
  $("#usual").textContent = found.length && `In which pose a network likes its digits is its own choice; found is what remains without it, as the affine map nearest to the grid. Root mean square of what it misses on ${facts.calibration.toLocaleString("en")} digits in poses of training, in rotation, scale and place: ${misses.join("; ")}.`;
  $("#trained").textContent = `The networks were trained and tested on ${facts.data}: digits turned by up to ${facts.rotation}°, of ${facts.scale.join(" to ")} times MNIST’s size, anywhere on ${facts.canvas} × ${facts.canvas} pixels; ${networks[0].n_test.toLocaleString("en")} test images.`;
}

const paintDigits = () => digits.forEach(({ canvas, pixels }) => paint(canvas, pixels, DIGIT));

// ---- frames

let wanted = false, running = false, since = 0, pace = 0;

/** Something changed: one frame is made of all that changes until it begins. */
function change() {
  wanted = true;
  if (running) return;
  running = true;
  requestAnimationFrame(step);
}

async function step(now) {
  wanted = false;
  if (wanderedFrom !== null) wander(now);
  pixels = render();
  paint($("#image"), pixels, facts.canvas);
  const answers = [];
  for (const network of networks) answers.push(await ask(network));
  results = answers;
  show();
  frames += 1;
  if (since && now - since < 250) pace = pace ? 0.9 * pace + 0.1 * (now - since) : now - since;
  since = now;
  if (pace && frames % 15 === 0) $("#speed").textContent = `; so far ${(1000 / pace).toFixed(0)} images a second through ${networks.length} networks`;
  running = false;
  if (wanted || wanderedFrom !== null) change();
}

/** The pose on a closed way through those of training, for one round. */
function wander(now) {
  wanderedFrom = wanderedFrom || now;
  const t = Math.min(1, (now - wanderedFrom) / ROUND), { from } = wander, turn = 2 * Math.PI * t;
  pose.rotation = from.rotation + (0 - from.rotation) * Math.sin(turn / 2) ** 2 + 38 * Math.sin(2 * turn) * Math.sin(turn / 2);
  pose.scale = from.scale + 0.16 * Math.sin(turn);
  pose.x = from.x + 5 * Math.sin(2 * turn) - 3 * Math.sin(turn / 2) ** 2;
  pose.y = from.y + 5 * Math.sin(3 * turn) + 2 * Math.sin(turn / 2) ** 2;
  if (t === 1) rest();
}

function rest() {
  wanderedFrom = null;
  $("#wander").setAttribute("aria-pressed", false);
}

function setOff() {
  wander.from = { ...pose };
  wanderedFrom = 0;
  $("#wander").setAttribute("aria-pressed", true);
  change();
}

/** What a person does: it ends the wandering. */
function touch(act) {
  rest();
  act();
  setSliders();
  change();
}

// ---- what a person does

const limit = (name, value) => {
  const { min, max } = $(`input[name=${name}]`);
  return Math.max(+min, Math.min(+max, value));
};
const wrapped = (angle) => angle - 360 * Math.round(angle / 360);
const pointers = new Map();
let hold = null; // what a drag does: a function of the pointer's place

function place(event) {
  const box = $("#stage").getBoundingClientRect(), unit = box.width / facts.canvas;
  return [(event.clientX - box.left) / unit - facts.canvas / 2, (event.clientY - box.top) / unit - facts.canvas / 2];
}

function setMode(drawing) {
  $("#stage").classList.toggle("drawing", drawing);
  $("#draw").setAttribute("aria-pressed", drawing);
  $("#move").setAttribute("aria-pressed", !drawing);
}

function press(event) {
  event.preventDefault();
  $("#overlay").setPointerCapture(event.pointerId);
  const at = place(event), held = event.target.closest(".handle");
  pointers.set(event.pointerId, at);
  touch(() => {
    if ($("#stage").classList.contains("drawing")) hold = startStroke(at);
    else if (pointers.size === 2) hold = startPinch();
    else hold = startDrag(at, held?.dataset.handle);
  });
  held?.classList.add("held");
}

function startStroke(at) {
  if (digit) Object.assign(pose, UPRIGHT);
  digit = null;
  const back = invert(placed(pose)), points = [apply(back, at)];
  strokes.push({ points, width: PEN / pose.scale });
  return (to) => {
    const point = apply(back, to), last = points.at(-1);
    if (Math.hypot(point[0] - last[0], point[1] - last[1]) > 0.4) points.push(point);
  };
}

function startDrag(at, handle) {
  const from = { ...pose }, about = ([x, y]) => [x - from.x, y - from.y];
  const angle = (point) => degrees(Math.atan2(-about(point)[1], about(point)[0]));
  const along = (point) => apply(invert(placed({ ...from, slant: 0 })), point)[0];
  return {
    rotate: (to) => (pose.rotation = wrapped(from.rotation + angle(to) - angle(at))),
    scale: (to) => (pose.scale = limit("scale", (from.scale * Math.hypot(...about(to))) / Math.max(1, Math.hypot(...about(at))))),
    slant: (to) => (pose.slant = limit("slant", degrees(Math.atan(Math.tan(radians(from.slant)) + (along(to) - along(at)) / 14)))),
    undefined: (to) => Object.assign(pose, { x: limit("x", from.x + to[0] - at[0]), y: limit("y", from.y + to[1] - at[1]) }),
  }[handle];
}

function startPinch() {
  const from = { ...pose };
  const between = () => {
    const [[x0, y0], [x1, y1]] = [...pointers.values()];
    return { size: Math.hypot(x1 - x0, y1 - y0), angle: degrees(Math.atan2(y0 - y1, x1 - x0)), x: (x0 + x1) / 2, y: (y0 + y1) / 2 };
  };
  const first = between();
  return () => {
    const now = between();
    Object.assign(pose, {
      rotation: wrapped(from.rotation + now.angle - first.angle), scale: limit("scale", (from.scale * now.size) / Math.max(1, first.size)),
      x: limit("x", from.x + now.x - first.x), y: limit("y", from.y + now.y - first.y),
    });
  };
}

function release(event) {
  if (!pointers.delete(event.pointerId)) return;
  document.querySelectorAll(".held").forEach((held) => held.classList.remove("held"));
  if ($("#stage").classList.contains("drawing")) centre();
  hold = null;
  if (pointers.size === 1 && !$("#stage").classList.contains("drawing")) hold = startDrag(...pointers.values());
  change();
}

function listen() {
  const overlay = $("#overlay");
  overlay.addEventListener("pointerdown", press);
  overlay.addEventListener("pointermove", (event) => {
    if (!hold || !pointers.has(event.pointerId)) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length ? all : [event]) {
      pointers.set(event.pointerId, place(each));
      hold(place(each));
    }
    change();
  });
  for (const name of ["pointerup", "pointercancel"]) overlay.addEventListener(name, release);
  for (const input of document.querySelectorAll("input[type=range]")) {
    input.oninput = () => touch(() => (pose[input.name] = +input.value));
  }
  const between = (low, high) => low + (high - low) * Math.random();
  $("#draw").onclick = () => setMode(true);
  $("#move").onclick = () => setMode(false);
  $("#reset").onclick = () => touch(() => Object.assign(pose, UPRIGHT));
  $("#clear").onclick = () => touch(() => {
    [digit, strokes] = [null, []];
    Object.assign(pose, UPRIGHT);
    setMode(true);
  });
  $("#random").onclick = () => touch(() => {
    const scale = between(...facts.scale), room = Math.max(0, facts.canvas - scale * DIGIT) / 2;
    Object.assign(pose, { rotation: between(-facts.rotation, facts.rotation), scale, x: between(-room, room), y: between(-room, room), slant: 0 });
  });
  $("#wander").onclick = () => (wanderedFrom === null ? setOff() : touch(() => {}));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (paintDigits(), change()));
  new ResizeObserver(change).observe($(".results"));
}

async function begin() {
  try {
    await load();
  } catch (error) {
    $("#notice").textContent = `The page cannot start: ${error.message}.`;
    throw error;
  }
  digit = digits[4];
  $("#notice").hidden = true;
  $("main").hidden = false;
  furnish();
  listen();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) change();
  else setOff();
}

// For tests and the console.
globalThis.play = {
  started: begin(),
  state: () => ({ pose: { ...pose }, pixels: Array.from(pixels ?? []), frames, resting: !running && wanderedFrom === null,
    results: results.map((result) => ({ ...result, seen: Array.from(result.seen), grid: Array.from(result.grid ?? []), pose: result.found && read(result.found) })) }),
};
