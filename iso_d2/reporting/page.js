"use strict";
// Adds to a page that is complete without it: values under the pointer, sorting, filters, larger pictures.

function watchChart(figure) {
  const data = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector(":scope > svg");
  const cursor = svg.querySelector(".cursor");
  const at = figure.querySelector(".at");
  const values = [...figure.querySelectorAll(".legend b")];
  const last = values.map((element) => element.textContent);
  const steps = [...new Set(data.series.flat().map((point) => point[0]))].sort((a, b) => a - b);
  const scale = (data.right - data.left) / (data.last - data.first);
  let index = steps.length - 1;

  function nearest(points, step) {
    return points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
  }
  function show() {
    const step = steps[index];
    const x = data.left + (step - data.first) * scale;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    at.textContent = "at " + step.toLocaleString("en");
    data.series.forEach((points, i) => { values[i].textContent = nearest(points, step)[1]; });
  }
  function leave() {
    cursor.setAttribute("visibility", "hidden");
    at.textContent = "";
    values.forEach((element, i) => { element.textContent = last[i]; });
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const step = data.first + ((event.clientX - box.left) * data.width / box.width - data.left) / scale;
    index = steps.indexOf(nearest(steps.map((s) => [s]), step)[0]);
    show();
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) {
      index = Math.min(steps.length - 1, Math.max(0, index + move));
      show();
      event.preventDefault();
    }
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const up = now ? now !== "ascending" : !numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const number = (text) => Number(text.replace("inf", "Infinity"));
      const compare = numeric
        ? (a, b) => number(key(a)) - number(key(b)) || 0
        : (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a))));
    });
  });
}

function addControls(gallery) {
  const grid = gallery.querySelector(".pictures");
  const pictures = [...grid.children];
  const measured = pictures.filter((picture) => picture.dataset.error !== undefined);
  if (measured.length < 2) return;
  const error = (picture) => Number(picture.dataset.error ?? -1);
  const controls = document.createElement("div");
  controls.className = "controls";
  controls.innerHTML =
    '<label>Order <select><option value="0">as evaluated</option><option value="-1">worst first</option>' +
    '<option value="1">best first</option></select></label>' +
    '<label>Error from <input type="range" min="0" max="1" step="0.01" value="0"><output>0.00</output></label>' +
    '<span role="status"></span>';
  const [order, least, output, status] = ["select", "input", "output", "[role]"].map((s) => controls.querySelector(s));
  function update() {
    const sign = Number(order.value);
    grid.append(...[...pictures].sort((a, b) => sign * (error(a) - error(b))));
    pictures.forEach((picture) => { picture.hidden = least.value > 0 && error(picture) < least.value; });
    output.textContent = Number(least.value).toFixed(2);
    const shown = pictures.filter((picture) => !picture.hidden).length;
    status.textContent = shown + " of " + pictures.length + " pictures";
  }
  order.addEventListener("change", update);
  least.addEventListener("input", update);
  grid.before(controls);
  update();
}

function makeLarger(picture, dialog) {
  const panels = picture.querySelector(".panels");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoom";
  button.setAttribute("aria-label", "Enlarge " + picture.querySelector("b").textContent);
  panels.replaceWith(button);
  button.append(panels);
  button.addEventListener("click", () => {
    dialog.querySelector("div").replaceChildren(panels.cloneNode(true));
    dialog.showModal();
  });
}

const dialog = document.querySelector("dialog");
dialog.querySelector("button").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.querySelectorAll("[data-chart]").forEach(watchChart);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".gallery").forEach(addControls);
document.querySelectorAll(".picture").forEach((picture) => makeLarger(picture, dialog));
