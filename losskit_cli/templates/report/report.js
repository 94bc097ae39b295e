"use strict";
// Figures are drawn when they come near the screen, in the page's own colours, and again when those change (dark mode, printing).
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plots = [...document.querySelectorAll(".plot")];
const options = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

function coloured(layout) {
  const ink = css("--ink"), soft = css("--soft"), grid = css("--grid");
  const axis = (given) => ({ ...given, gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid, tickfont: { ...(given.tickfont || {}), color: soft } });
  const made = { ...layout, font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink } };
  for (const key of ["xaxis", "yaxis"]) made[key] = made[key] || {};
  for (const key of Object.keys(made)) {
    if (/^[xy]axis\d*$/.test(key)) made[key] = axis(made[key]);
  }
  if (made.scene) {
    made.scene = { ...made.scene };
    for (const key of ["xaxis", "yaxis", "zaxis"]) made.scene[key] = { ...axis(made.scene[key] || {}), backgroundcolor: "rgba(0,0,0,0)" };
  }
  made.hoverlabel = { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: ink } };
  if (made.annotations) made.annotations = made.annotations.map((note) => ({ ...note, bgcolor: css("--page"), borderpad: 1, font: { ...(note.font || {}), color: ink } }));
  return made;
}

function draw(element, width) {
  const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
  element.dataset.drawn = "yes";
  Plotly.react(element, figure.data, { ...coloured(figure.layout), width, autosize: !width }, options);
  if (!width) Plotly.Plots.resize(element); // a width once set stays otherwise
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }
}, { rootMargin: "600px" });
plots.forEach((element) => near.observe(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.filter((p) => p.dataset.drawn).forEach((p) => draw(p)));

// A sheet is narrower than a screen and white, which the page learns only after its figures have been drawn.
const printing = (on) => {
  document.documentElement.classList.toggle("printing", on);
  plots.forEach((p) => draw(p, on ? (p.closest(".slices") ? 320 : 660) : undefined));
};
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));

// Tables are sorted by a click on a heading: numbers as numbers, what is missing last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("th").forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}
