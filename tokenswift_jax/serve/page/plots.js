// Plots of a run: speed and repetition by position, acceptance by depth.

import { pause } from "/page/slices.js";

const BUCKET = 32; // tokens
const POINTS = 160; // of a plot
const BASE = 18; // pixels of a plot that its line leaves to the number at the top
const GRAM = 4; // tokens of a sequence that counts as repeated

export class Plots {
  constructor(elements) {
    this.elements = elements; // canvas and value by name
    this.clear();
  }

  clear() {
    this.count = 0;
    this.seconds = [];
    this.repeated = [];
    this.offered = [];
    this.accepted = [];
    this.grams = new Set();
    this.last = [0, 0, 0];
    this.dirty = true;
  }

  token(id, seconds) {
    const bucket = Math.floor(this.count / BUCKET);
    this.seconds[bucket] = (this.seconds[bucket] ?? 0) + seconds;
    const [a, b, c] = this.last;
    if (this.count >= GRAM - 1) {
      const key = mixed(a, b, c, id);
      if (this.grams.has(key)) this.repeated[bucket] = (this.repeated[bucket] ?? 0) + 1;
      else this.grams.add(key);
    }
    this.last = [b, c, id];
    this.count += 1;
    this.dirty = true;
  }

  iteration(tokens, offered) {
    for (let depth = 0; depth < offered; depth += 1) {
      this.offered[depth] = (this.offered[depth] ?? 0) + 1;
      if (tokens - 1 > depth) this.accepted[depth] = (this.accepted[depth] ?? 0) + 1;
    }
  }

  // Draws each plot in a task of its own: the first use of a canvas and of its font takes the browser long.
  async draw() {
    if (!this.dirty || this.drawing) return;
    this.dirty = false;
    this.drawing = true;
    await pause();
    const buckets = Math.ceil(this.count / BUCKET), step = Math.max(1, Math.ceil(buckets / POINTS));
    const speed = [], repeat = [];
    for (let start = 0; start < buckets; start += step) {
      let seconds = 0, repeated = 0;
      for (let at = start; at < Math.min(start + step, buckets); at += 1) {
        seconds += this.seconds[at] ?? 0;
        repeated += this.repeated[at] ?? 0;
      }
      const tokens = Math.min(this.count, (start + step) * BUCKET) - start * BUCKET;
      speed.push(seconds > 0 ? tokens / seconds : null);
      repeat.push(repeated / tokens);
    }
    const shares = this.offered.map((count, depth) => (this.accepted[depth] ?? 0) / count);
    const total = this.seconds.reduce((sum, each) => sum + (each ?? 0), 0);
    const all = this.repeated.reduce((sum, each) => sum + (each ?? 0), 0);
    this.show("speed", lines, speed, null, total > 0 ? `${round(this.count / total)} tokens/s on average` : "");
    await pause();
    this.show("repeat", lines, repeat, 1, this.count ? `${Math.round((100 * all) / this.count)}% seen before` : "");
    await pause();
    this.show("depth", bars, shares, 1, shares.length
      ? shares.slice(0, 4).map((share) => `${Math.round(100 * share)}%`).join(" ") + (shares.length > 4 ? " …" : "")
      : "nothing drafted");
    this.drawing = false;
    if (this.dirty && !this.count) this.draw(); // another run came meanwhile
  }

  show(name, draw, values, top, said) {
    const [canvas, output] = this.elements[name];
    output.textContent = said;
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    pen.scale(scale, scale);
    const colours = { line: style.getPropertyValue("--line"), ink: style.getPropertyValue("--accent"), dim: style.getPropertyValue("--dim") };
    const most = top ?? Math.max(1e-9, ...values.filter((value) => value !== null));
    pen.strokeStyle = colours.line;
    pen.strokeRect(0.5, 0.5, width - 1, height - 1);
    pen.font = "10px sans-serif";
    pen.fillStyle = colours.dim;
    pen.textBaseline = "top";
    if (values.length) pen.fillText(top === 1 ? "100%" : round(most), 4, 3);
    draw(pen, values, most, width, height, colours);
  }
}

function lines(pen, values, most, width, height, { ink }) {
  pen.strokeStyle = ink;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.beginPath();
  let open = false;
  const step = width / Math.max(values.length - 1, 1);
  for (const [index, value] of values.entries()) {
    if (value === null) {
      open = false;
      continue;
    }
    const x = index * step, y = height - 2 - (value / most) * (height - BASE);
    if (open) pen.lineTo(x, y);
    else pen.moveTo(x, y);
    if (values.length === 1) pen.lineTo(width, y);
    open = true;
  }
  pen.stroke();
}

function bars(pen, values, most, width, height, { ink }) {
  pen.fillStyle = ink;
  const step = width / Math.max(values.length, 6);
  for (const [index, value] of values.entries()) {
    const tall = (value / most) * (height - BASE);
    pen.fillRect(index * step + 3, height - 2 - tall, Math.max(step - 6, 1), tall);
  }
}

const round = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(2));

// 53 bits of four ids.
function mixed(...ids) {
  let high = 0x9e3779b9, low = 0x85ebca6b;
  for (const id of ids) {
    high = Math.imul(high ^ id, 0x01000193) ^ (high >>> 15);
    low = Math.imul(low ^ id, 0xcc9e2d51) ^ (low >>> 13);
  }
  return (high & 0x1fffff) * 2 ** 32 + (low >>> 0);
}
