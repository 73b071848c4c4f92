// All machines as one picture: a cell each, from calm to strained.
//
// The ramp runs from blue to orange and grows in lightness (dark theme) or darkness (light theme) all the way, so it
// reads the same with any kind of colour blindness and in a grey print. An alert is told by shape: a diamond that stands
// out of its cell, in the theme's strongest contrast, and larger while it is new.

import { drawer, fitted, themeColor, onThemeChange } from "./format.js";

const ALERT = 255;
const SILENT = 254;
const STRAIN_MAX = 199;
const RAMPS = {
  dark: ["#14223d", "#1d4468", "#2f77a3", "#8d9a86", "#e0a33f", "#ffd27a"],
  light: ["#dfe9f3", "#a9c8e0", "#6d9fc4", "#a07c55", "#8f4a10", "#5a2500"],
};

function channels(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

/** 200 colours as packed little-endian RGBA, which is how an ImageData lies in memory. */
function packedRamp(stops) {
  const colors = stops.map(channels);
  return Uint32Array.from({ length: STRAIN_MAX + 1 }, (_, strain) => {
    const place = (strain / STRAIN_MAX) * (colors.length - 1);
    const at = Math.min(Math.floor(place), colors.length - 2);
    const mixed = colors[at].map((low, n) => Math.round(low + (colors[at + 1][n] - low) * (place - at)));
    return (255 << 24) | (mixed[2] << 16) | (mixed[1] << 8) | mixed[0];
  });
}

export class HeatMap {
  /** `onHover(machine | null, x, y)` and `onSelect(machine)` get machine numbers; x and y are CSS pixels in the box. */
  constructor(canvas, rampCanvas, { onHover, onSelect }) {
    this.canvas = canvas;
    this.rampCanvas = rampCanvas;
    this.onSelect = onSelect;
    this.machines = 0;
    this.columns = 1;
    this.health = new Uint8Array();
    this.before = new Uint8Array();
    this.selected = null;
    this.cells = document.createElement("canvas");
    this.readTheme();
    onThemeChange(() => this.readTheme());
    this.request = drawer(canvas, () => this.draw());
    canvas.addEventListener("pointermove", (event) => onHover(this.machineAt(event), event.offsetX, event.offsetY));
    canvas.addEventListener("pointerleave", () => onHover(null, 0, 0));
    canvas.addEventListener("click", (event) => this.select(this.machineAt(event)));
    canvas.addEventListener("keydown", (event) => this.walk(event));
  }

  readTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.ramp = packedRamp(dark ? RAMPS.dark : RAMPS.light);
  }

  /** `encoded` is the feed's `health`. Returns how many alert and how many are silent. */
  update(machines, columns, encoded) {
    const text = atob(encoded);
    this.before = this.health;
    this.health = Uint8Array.from(text, (char) => char.charCodeAt(0));
    this.machines = machines;
    this.columns = Math.max(1, columns);
    this.request();
    let [alerts, silent] = [0, 0];
    for (const value of this.health) {
      alerts += value === ALERT;
      silent += value === SILENT;
    }
    return { alerts, silent };
  }

  /** What is known of a machine: "alert", "silent", or its strain in percent. */
  state(machine) {
    const value = this.health[machine];
    if (value === undefined || value === SILENT) return { kind: "silent" };
    if (value === ALERT) return { kind: "alert" };
    return { kind: "strain", percent: Math.round((value / STRAIN_MAX) * 100) };
  }

  get rows() {
    return Math.max(1, Math.ceil(this.machines / this.columns));
  }

  machineAt(event) {
    const column = Math.floor((event.offsetX / this.canvas.clientWidth) * this.columns);
    const row = Math.floor((event.offsetY / this.canvas.clientHeight) * this.rows);
    const machine = row * this.columns + column;
    return column >= 0 && column < this.columns && row >= 0 && machine < this.machines ? machine : null;
  }

  select(machine) {
    if (machine === null) return;
    this.selected = machine;
    this.onSelect(machine);
    this.request();
  }

  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (step === undefined || this.machines === 0) return;
    event.preventDefault();
    const next = this.selected === null ? 0 : this.selected + step;
    if (next >= 0 && next < this.machines) this.select(next);
  }

  draw() {
    this.drawRamp();
    const fit = fitted(this.canvas);
    if (!fit || this.machines === 0) return;
    const { context, width, height } = fit;
    this.paintCells();
    context.imageSmoothingEnabled = false;
    context.drawImage(this.cells, 0, 0, width, height);
    const [cellWidth, cellHeight] = [width / this.columns, height / this.rows];
    const center = (machine) => [
      ((machine % this.columns) + 0.5) * cellWidth,
      (Math.floor(machine / this.columns) + 0.5) * cellHeight,
    ];
    this.drawAlerts(context, center, Math.min(cellWidth, cellHeight));
    if (this.selected !== null) this.drawSelection(context, center(this.selected), Math.max(5, cellWidth * 1.6));
  }

  /** One pixel per machine; the browser enlarges it without smoothing. */
  paintCells() {
    const [columns, rows] = [this.columns, this.rows];
    this.cells.width = columns;
    this.cells.height = rows;
    const context = this.cells.getContext("2d");
    const image = context.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const hottest = this.ramp[STRAIN_MAX];
    for (let machine = 0; machine < this.health.length && machine < pixels.length; machine++) {
      const value = this.health[machine];
      // A silent machine stays transparent: the box's hatching shows through.
      if (value !== SILENT) pixels[machine] = value === ALERT ? hottest : this.ramp[Math.min(value, STRAIN_MAX)];
    }
    context.putImageData(image, 0, 0);
  }

  drawAlerts(context, center, cell) {
    const size = Math.min(9, Math.max(3.2, cell * 1.15));
    const trace = (fresh) => {
      context.beginPath();
      for (let machine = 0; machine < this.health.length; machine++) {
        if (this.health[machine] !== ALERT || (this.before[machine] !== ALERT) !== fresh) continue;
        const [x, y] = center(machine);
        const reach = fresh ? size * 1.55 : size;
        context.moveTo(x, y - reach);
        context.lineTo(x + reach, y);
        context.lineTo(x, y + reach);
        context.lineTo(x - reach, y);
        context.closePath();
      }
    };
    context.lineJoin = "round";
    context.lineWidth = 2;
    context.strokeStyle = themeColor("alert-edge");
    context.fillStyle = themeColor("alert");
    for (const fresh of [false, true]) {
      trace(fresh);
      context.stroke();
      context.fill();
    }
  }

  drawSelection(context, [x, y], radius) {
    for (const [color, lineWidth] of [[themeColor("alert-edge"), 4], [themeColor("select"), 2]]) {
      context.strokeStyle = color;
      context.lineWidth = lineWidth;
      context.beginPath();
      context.arc(x, y, radius + 3, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawRamp() {
    const fit = fitted(this.rampCanvas);
    if (!fit) return;
    const strip = document.createElement("canvas");
    strip.width = this.ramp.length;
    strip.height = 1;
    const context = strip.getContext("2d");
    const image = context.createImageData(strip.width, 1);
    new Uint32Array(image.data.buffer).set(this.ramp);
    context.putImageData(image, 0, 0);
    fit.context.drawImage(strip, 0, 0, fit.width, fit.height);
  }
}
