"use strict";

// tables: a click on a column's name sorts by it
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value === undefined) return cell.textContent.trim();
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : up ? order(a, b) : order(b, a)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// nats or perplexity
for (const units of document.querySelectorAll("[data-units]")) {
  units.addEventListener("change", (event) => {
    units.parentElement.querySelector("table").classList.toggle("in-ppl", event.target.value === "ppl");
  });
}

// loss curves: scale, values while pointing, one line at a time
for (const figure of document.querySelectorAll(".curves")) {
  const [width, height, left, right, top, bottom] = JSON.parse(figure.dataset.box);
  const [, xMost] = JSON.parse(figure.dataset.x);
  const [yLeast, yMost] = JSON.parse(figure.dataset.y);
  const svg = figure.querySelector("svg");
  const readout = figure.querySelector(".readout");
  const pointer = figure.querySelector(".pointer");
  const buttons = [...figure.querySelectorAll(".legend button")];
  const linearTicks = figure.querySelector(".ticks.x").innerHTML;
  const lines = [...figure.querySelectorAll(".line")].map((group) => ({
    group,
    name: group.dataset.name,
    points: JSON.parse(group.dataset.points),
    valid: JSON.parse(group.dataset.valid),
  }));
  const xLeast = Math.max(1, Math.min(...lines.flatMap((line) => line.points.map(([t]) => t)).filter((t) => t > 0)));
  const element = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const short = (t) => (t >= 1e9 ? `${+(t / 1e9).toPrecision(3)} G` : t >= 1e6 ? `${+(t / 1e6).toPrecision(3)} M` : t >= 1e3 ? `${+(t / 1e3).toPrecision(3)} k` : `${t}`);
  let log = false;
  let at = null; // [line, point]
  let held = null; // line picked in the legend

  const x = (t) => {
    const share = log ? Math.log(Math.max(t, xLeast) / xLeast) / Math.log(xMost / xLeast) : t / xMost;
    return left + (width - left - right) * share;
  };
  const y = (v) => height - bottom - ((height - top - bottom) * (v - yLeast)) / (yMost - yLeast);

  function draw() {
    for (const { group, points, valid } of lines) {
      group.querySelector("path").setAttribute("d", `M${points.map(([t, v]) => `${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}`);
      group.querySelectorAll("circle").forEach((circle) => circle.remove());
      group.append(...valid.map(([t, v]) => element("circle", { cx: x(t).toFixed(1), cy: y(v).toFixed(1), r: 3 })));
    }
    const ticks = figure.querySelector(".ticks.x");
    if (!log) ticks.innerHTML = linearTicks;
    else {
      const decades = [];
      for (let p = Math.ceil(Math.log10(xLeast)); p <= Math.log10(xMost); p++) decades.push(10 ** p);
      const label = (t) => element("text", { x: x(t).toFixed(1), y: height - bottom + 20, "text-anchor": "middle" }, short(t));
      ticks.replaceChildren(...decades.map(label));
    }
    show();
  }

  function show() {
    const picked = at ? at[0] : held;
    svg.classList.toggle("picked", picked !== null);
    lines.forEach(({ group }, i) => group.classList.toggle("on", i === picked));
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === held)));
    pointer.replaceChildren();
    readout.textContent = "";
    if (!at) return;
    const { name, points, valid } = lines[at[0]];
    const [t, v] = points[at[1]];
    pointer.append(element("circle", { cx: x(t), cy: y(v), r: 5 }));
    const before = valid.filter(([seen]) => seen <= t * 1.0001).pop();
    readout.textContent = `${name}: ${v.toFixed(3)} nats a token after ${Math.round(t).toLocaleString("en")} tokens` + (before ? `; held-out ${before[1].toFixed(3)}` : "");
  }

  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let least = Infinity;
    lines.forEach((line, i) => {
      if (held !== null && i !== held) return;
      line.points.forEach(([t, v], j) => {
        const away = Math.hypot(x(t) - place.x, y(v) - place.y);
        if (away < least) [least, at] = [away, [i, j]];
      });
    });
    show();
  });
  svg.addEventListener("pointerleave", () => { at = null; show(); });
  svg.addEventListener("blur", () => { at = null; show(); });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const line = at ? (at[0] + step[0] + lines.length) % lines.length : (held ?? 0);
    const last = lines[line].points.length - 1;
    at = [line, at ? Math.min(Math.max(at[1] + step[1], 0), last) : last];
    show();
  });
  buttons.forEach((button, i) => button.addEventListener("click", () => { held = held === i ? null : i; at = null; show(); }));
  figure.querySelector("fieldset").addEventListener("change", (event) => { log = event.target.value === "log"; draw(); });
  draw();
}
