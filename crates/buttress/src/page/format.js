// Numbers and times as people read them, and the few DOM helpers that every panel uses.

const grouping = new Intl.NumberFormat("en-US");

/** 12345 → "12,345"; nothing yet → "–". */
export function count(value) {
  return value === null || value === undefined ? "–" : grouping.format(Math.round(value));
}

/** Short enough for an axis: 10000 → "10k". */
export function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(1)}M`;
  if (value >= 1e3) return `${+(value / 1e3).toFixed(1)}k`;
  return `${Math.round(value)}`;
}

/** Milliseconds with the digits that mean something: 4.2 ms, 38 ms, 1.24 s. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

export function seconds(value) {
  return `${value.toFixed(1)} s`;
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)} %`;
}

/** "sha256:9f2b…" → "9f2b5c01d4e8": as much of a digest as one compares by eye. */
export function digest(text) {
  return text.replace(/^sha256:/, "").slice(0, 12);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Writes only what changed, so that a page at rest costs no layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** `make("li", "class", child, "text", …)`; a child that is null is left out. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

/** The colours of the theme that is in force, as style.css defines them. */
export function themeColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Calls `changed` when the system turns dark or light. */
export function onThemeChange(changed) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

/**
 * Draws at most once per frame, however often it is asked to, and again when the element's size changes.
 * Between two requests nothing runs: the fleet needs the processor more than its picture does.
 */
export function drawer(element, draw) {
  let requested = false;
  const request = () => {
    if (requested) return;
    requested = true;
    requestAnimationFrame(() => {
      requested = false;
      draw();
    });
  };
  new ResizeObserver(request).observe(element);
  onThemeChange(request);
  return request;
}

/** Fits a canvas's pixels to its box and returns a context in CSS pixels, or null while it has no size. */
export function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (width === 0 || height === 0) return null;
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
