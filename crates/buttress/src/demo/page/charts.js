// Throughput, latency and leader over time: three lanes of one canvas, so that a moment is one vertical line in all of
// them.
//
// The lanes share the time axis, from the start of the play to its planned end (a long run shows its last minutes). What
// happened to the cluster is a line through all lanes; the time without a leader is a hatched band. Labels stand on a
// strip above the lanes and give way to each other: one that has no room is left out, its line stays.

import { count, drawer, fitted, ms, seconds, short, themeColor } from "./format.js";

/** Longer runs scroll; the feed keeps this much as well. */
const WINDOW_S = 300;
const SERIES_MAX = 600;
const LEFT = 54;
const RIGHT = 10;
const LABELS_HEIGHT = 30;
const LABEL_ROW = 14;
const AXIS_HEIGHT = 18;
const BAND_HEIGHT = 22;
const TITLE_HEIGHT = 19;
const LATENCY_MS_MIN = 1;

/**
 * Which events are lines, how they are labelled, and on which side of the line the label would like to stand; what is
 * more important comes first and gets the room.
 */
const MARKS = {
  kill: { symbol: "✕", color: "bad", side: "left", label: (text) => `${text.match(/SIGKILL to (\S+?),/)?.[1] ?? "leader"} killed` },
  election: { symbol: "★", color: "good", side: "right", label: (text) => text.match(/^(\S+) leads term/)?.[1] ?? "election" },
  swap: { symbol: "⇄", color: "accent", side: "right", label: (text) => `model ${text.match(/to (\d+)$/)?.[1] ?? "swap"}` },
  restart: { symbol: "↻", color: "muted", side: "right", label: (text) => `${text.split(" ")[0]} back` },
  trap: { symbol: "!", color: "muted", side: "right", label: () => "trap" },
};

export class Charts {
  constructor(canvas, tip) {
    this.canvas = canvas;
    this.tip = tip;
    this.pointer = null;
    this.clear();
    this.request = drawer(canvas, () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.point({ x: event.offsetX, y: event.offsetY }));
    canvas.addEventListener("pointerleave", () => this.point(null));
  }

  clear() {
    this.series = [];
    this.timeline = [];
    this.marks = [];
    this.nodes = [];
    this.elapsed = 0;
    this.duration = 60;
  }

  /** Replaces everything, after a snapshot. */
  reset({ series, timeline, events }) {
    this.clear();
    this.series = series.slice(-SERIES_MAX);
    this.timeline = [...timeline];
    this.marks = events.filter((event) => MARKS[event.kind]);
    this.request();
  }

  /** The running figures; a point of the series while the plant plays. */
  tick(tick) {
    this.elapsed = tick.elapsed_s;
    this.duration = tick.duration_s || this.duration;
    this.nodes = tick.cluster.nodes.map((node) => node.name);
    const last = this.series.at(-1);
    if (tick.phase === "playing" && (!last || tick.elapsed_s > last.at_s)) {
      const { acked, verdicts, anomalies } = tick.rates;
      const { p50, p99 } = tick.latency_ms;
      this.series.push({ at_s: tick.elapsed_s, acked, verdicts, anomalies, p50, p99 });
      if (this.series.length > SERIES_MAX) this.series.shift();
    }
    this.request();
  }

  leader(change) {
    this.timeline.push(change);
    this.request();
  }

  event(event) {
    if (MARKS[event.kind]) this.marks.push(event);
    this.request();
  }

  point(place) {
    this.pointer = place;
    this.request();
  }

  draw() {
    const fit = fitted(this.canvas);
    if (!fit) return;
    const { context, width, height } = fit;
    this.context = context;
    this.font = getComputedStyle(this.canvas).fontFamily;
    context.font = `11px ${this.font}`;
    context.textBaseline = "middle";
    this.from = Math.max(0, this.elapsed - WINDOW_S);
    this.to = Math.max(this.from + Math.min(this.duration, WINDOW_S), this.elapsed);
    this.left = LEFT;
    this.right = width - RIGHT;
    const lanes = height - LABELS_HEIGHT - AXIS_HEIGHT - BAND_HEIGHT - 3 * TITLE_HEIGHT;
    const throughput = { top: LABELS_HEIGHT + TITLE_HEIGHT, height: Math.max(24, lanes * 0.45) };
    const latency = { top: throughput.top + throughput.height + TITLE_HEIGHT, height: Math.max(24, lanes * 0.55) };
    const band = { top: latency.top + latency.height + TITLE_HEIGHT, height: BAND_HEIGHT };
    const bottom = band.top + band.height;

    this.drawTimeAxis(bottom);
    this.drawLeaderless(LABELS_HEIGHT, latency.top + latency.height);
    this.drawMarks(LABELS_HEIGHT, bottom);
    this.drawThroughput(throughput);
    this.drawLatency(latency);
    this.drawBand(band);
    this.drawPointer(LABELS_HEIGHT, bottom, width);
  }

  x(at) {
    return this.left + ((at - this.from) / (this.to - this.from)) * (this.right - this.left);
  }

  visible(points) {
    return points.filter((point) => point.at_s >= this.from - 1);
  }

  text(text, x, y, color, align = "left") {
    this.context.textAlign = align;
    this.context.fillStyle = color;
    this.context.fillText(text, x, y);
  }

  line(x0, y0, x1, y1, color) {
    const { context } = this;
    context.strokeStyle = color;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }

  drawTimeAxis(top) {
    const span = this.to - this.from;
    const step = [1, 2, 5, 10, 20, 30, 60, 120].find((candidate) => span / candidate <= 8) ?? 300;
    for (let at = Math.ceil(this.from / step) * step; at <= this.to + 1e-9; at += step) {
      const x = this.x(at);
      const align = x > this.right - 12 ? "right" : "center";
      this.text(`${at} s`, align === "right" ? this.right : x, top + AXIS_HEIGHT / 2 + 2, themeColor("muted"), align);
    }
  }

  /** The spans without a leader, as far as the timeline tells. */
  leaderless() {
    return this.spans().filter((span) => span.leader === null);
  }

  /** The first leader was there before the play began, by a clock that the play set anew. */
  spans() {
    const begin = (at) => (at === 0 ? 0 : this.timeline[at].at_s);
    const end = (at) => this.timeline[at + 1]?.at_s ?? Math.max(this.elapsed, begin(at));
    return this.timeline
      .map((change, at) => ({ ...change, from: begin(at), to: end(at) }))
      .filter((span) => span.to > this.from && span.to > span.from);
  }

  drawLeaderless(top, bottom) {
    this.context.fillStyle = themeColor("leaderless");
    for (const span of this.leaderless()) {
      const x = Math.max(this.left, this.x(span.from));
      this.context.fillRect(x, top, Math.max(2, this.x(span.to) - x), bottom - top);
    }
  }

  /** Title on the left (the longest that has room) and keys on the right, above a lane. */
  title(lane, titles, keys) {
    const { context } = this;
    const y = lane.top - TITLE_HEIGHT / 2;
    context.font = `11px ${this.font}`;
    const keysWidth = keys.reduce((sum, { name }) => sum + context.measureText(name).width + 31, 0);
    context.font = `600 11px ${this.font}`;
    const room = this.right - this.left - keysWidth;
    const title = titles.find((text) => context.measureText(text).width < room) ?? titles.at(-1);
    // Lines of marks end at the text instead of crossing it.
    context.fillStyle = themeColor("panel");
    context.fillRect(this.left, y - 8, context.measureText(title).width + 6, 16);
    context.fillRect(this.right - keysWidth + 8, y - 8, keysWidth - 8, 16);
    this.text(title, this.left, y, themeColor("text"));
    context.font = `11px ${this.font}`;
    let x = this.right;
    for (const { name, color, dashed } of [...keys].reverse()) {
      this.text(name, x, y, themeColor("muted"), "right");
      x -= this.context.measureText(name).width + 5;
      this.context.setLineDash(dashed ? [3, 2] : []);
      this.context.lineWidth = 2;
      this.context.strokeStyle = color;
      this.context.beginPath();
      this.context.moveTo(x - 14, y);
      this.context.lineTo(x, y);
      this.context.stroke();
      this.context.setLineDash([]);
      x -= 26;
    }
  }

  drawThroughput(lane) {
    const points = this.visible(this.series);
    const top = Math.max(10, ...points.map((point) => Math.max(point.verdicts, point.acked)));
    const step = niceStep(top / 2.2);
    const y = (value) => lane.top + lane.height * (1 - value / (top * 1.08));
    for (let value = 0; value <= top * 1.08; value += step) {
      this.line(this.left, y(value), this.right, y(value), themeColor("grid"));
      this.text(short(value), this.left - 6, y(value), themeColor("muted"), "right");
    }
    const [area, edge] = [themeColor("series-a"), themeColor("series-b")];
    this.fill(points, (point) => y(point.verdicts), () => y(0), themeColor("series-a-fill"));
    this.stroke(points, (point) => y(point.verdicts), area, []);
    this.stroke(points, (point) => y(point.acked), edge, [4, 3]);
    this.title(lane, ["Throughput, per second", "Throughput/s"], [
      { name: "verdicts", color: area },
      { name: "acknowledged", color: edge, dashed: true },
    ]);
  }

  drawLatency(lane) {
    const points = this.visible(this.series).filter((point) => point.p50 !== null && point.p99 !== null);
    const decades = Math.max(3, Math.ceil(Math.log10(Math.max(1, ...points.map((point) => point.p99)))));
    const y = (value) => lane.top + lane.height * (1 - Math.log10(Math.max(value, LATENCY_MS_MIN)) / decades);
    for (let decade = 0; decade <= decades; decade++) {
      const at = y(10 ** decade);
      this.line(this.left, at, this.right, at, themeColor("grid"));
      const label = decade < 3 ? `${10 ** decade} ms` : `${10 ** (decade - 3)} s`;
      this.text(label, this.left - 6, at, themeColor("muted"), "right");
    }
    const [p50, p99] = [themeColor("series-c"), themeColor("series-d")];
    this.fill(points, (point) => y(point.p99), (point) => y(point.p50), themeColor("series-c-fill"));
    this.stroke(points, (point) => y(point.p50), p50, []);
    this.stroke(points, (point) => y(point.p99), p99, [4, 3]);
    this.title(lane, ["Arrival to verdict, log scale", "Arrival to verdict"], [
      { name: "p50", color: p50 },
      { name: "p99", color: p99, dashed: true },
    ]);
  }

  stroke(points, y, color, dash) {
    const { context } = this;
    if (points.length === 0) return;
    context.save();
    context.beginPath();
    context.rect(this.left, 0, this.right - this.left + 2, this.canvas.clientHeight);
    context.clip();
    context.beginPath();
    for (const point of points) context.lineTo(this.x(point.at_s), y(point));
    context.setLineDash(dash);
    context.lineWidth = 1.8;
    context.lineJoin = "round";
    context.strokeStyle = color;
    context.stroke();
    context.restore();
    // The newest value is a dot, so that one point alone shows as well.
    const last = points.at(-1);
    context.fillStyle = color;
    context.beginPath();
    context.arc(this.x(last.at_s), y(last), 2.4, 0, 2 * Math.PI);
    context.fill();
  }

  fill(points, upper, lower, color) {
    const { context } = this;
    if (points.length < 2) return;
    context.save();
    context.beginPath();
    context.rect(this.left, 0, this.right - this.left, this.canvas.clientHeight);
    context.clip();
    context.beginPath();
    for (const point of points) context.lineTo(this.x(point.at_s), upper(point));
    for (const point of [...points].reverse()) context.lineTo(this.x(point.at_s), lower(point));
    context.closePath();
    context.fillStyle = color;
    context.fill();
    context.restore();
  }

  drawBand(lane) {
    const { context } = this;
    this.title(lane, ["Leader and term"], []);
    context.font = `600 11px ${this.font}`;
    context.fillStyle = themeColor("grid");
    context.fillRect(this.left, lane.top, this.right - this.left, lane.height);
    for (const span of this.spans()) {
      const from = Math.max(this.left, this.x(span.from));
      const width = Math.max(2, this.x(span.to) - from);
      if (span.leader === null) {
        this.hatch(from, lane.top, width, lane.height);
        continue;
      }
      const node = Math.max(0, this.nodes.indexOf(span.leader));
      context.fillStyle = themeColor(`node-${(node % 7) + 1}`);
      context.fillRect(from, lane.top, width, lane.height);
      const labels = [`${span.leader} · term ${span.term}`, `${span.leader} · ${span.term}`, span.leader];
      const label = labels.find((text) => context.measureText(text).width + 10 < width);
      if (label) this.text(label, from + 6, lane.top + lane.height / 2 + 1, themeColor("node-text"));
    }
    context.font = `11px ${this.font}`;
  }

  hatch(x, y, width, height) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.fillStyle = themeColor("leaderless");
    context.fillRect(x, y, width, height);
    context.strokeStyle = themeColor("bad");
    context.lineWidth = 1.5;
    context.beginPath();
    for (let at = x - height; at < x + width; at += 5) {
      context.moveTo(at, y + height);
      context.lineTo(at + height, y);
    }
    context.stroke();
    context.restore();
  }

  /** By importance, and among equals the newest first, so that what just happened has its label. */
  drawMarks(top, bottom) {
    const { context } = this;
    context.font = `600 11px ${this.font}`;
    const taken = [];
    const order = Object.keys(MARKS);
    const marks = this.visible(this.marks).reverse();
    marks.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    for (const event of marks) {
      const mark = MARKS[event.kind];
      const x = Math.round(this.x(event.at_s)) + 0.5;
      if (x < this.left || x > this.right + 1) continue;
      const color = themeColor(mark.color);
      context.setLineDash(event.kind === "kill" || event.kind === "election" ? [] : [2, 3]);
      this.line(x, top, x, bottom, color);
      context.setLineDash([]);
      this.placeLabel(`${mark.symbol} ${mark.label(event.text)}`, x, mark.side, color, taken);
    }
    const middle = (row) => row * LABEL_ROW + LABEL_ROW / 2 + 1;
    for (const { row, x, color } of taken) if (row === 0) this.line(x, middle(0), x, LABELS_HEIGHT, color);
    for (const { row, from, to, text, color } of taken) {
      // The line of an upper label ends at a lower one.
      context.fillStyle = themeColor("panel");
      context.fillRect(from + 2, middle(row) - 7, to - from - 4, 14);
      this.text(text, from + 4, middle(row), color);
    }
    context.font = `11px ${this.font}`;
  }

  placeLabel(text, x, wanted, color, taken) {
    const width = this.context.measureText(text).width;
    const sides = wanted === "left" ? ["left", "right"] : ["right", "left"];
    for (const row of [1, 0]) {
      for (const side of sides) {
        const from = side === "left" ? x - width - 4 : x + 4;
        const box = { row, from: from - 4, to: from + width + 4, text, x, color };
        const fits = box.from >= 0 && box.to <= this.right + RIGHT;
        if (!fits || taken.some((other) => other.row === row && other.from < box.to && box.from < other.to)) continue;
        taken.push(box);
        return;
      }
    }
  }

  drawPointer(top, bottom, width) {
    const nearest = this.pointer && this.nearest();
    this.tip.hidden = !nearest;
    if (!nearest) return;
    const x = this.x(nearest.at_s);
    this.line(x, top, x, bottom, themeColor("muted"));
    const leader = this.spans().findLast((span) => span.from <= nearest.at_s);
    this.tip.textContent = [
      seconds(nearest.at_s),
      `${count(nearest.acked)} acknowledged/s`,
      `${count(nearest.verdicts)} verdicts/s`,
      `p50 ${ms(nearest.p50)}, p99 ${ms(nearest.p99)}`,
      leader ? (leader.leader ? `${leader.leader} leads term ${leader.term}` : "no leader") : null,
    ]
      .filter(Boolean)
      .join("\n");
    const box = this.canvas.offsetLeft + x;
    const room = this.tip.offsetWidth + 12;
    this.tip.style.left = `${box + room > width ? box - room : box + 12}px`;
    this.tip.style.top = `${this.canvas.offsetTop + LABELS_HEIGHT + 6}px`;
  }

  nearest() {
    const points = this.visible(this.series);
    if (points.length === 0 || this.pointer.x < this.left) return null;
    const at = this.from + ((this.pointer.x - this.left) / (this.right - this.left)) * (this.to - this.from);
    return points.reduce((best, point) => (Math.abs(point.at_s - at) < Math.abs(best.at_s - at) ? point : best));
  }
}

/** 1, 2 or 5 times a power of ten, at least `least`. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least);
}
