// Draws every chart, in the colours of the ground it stands on. No chart: the tables remain.
(() => {
  "use strict";
  const fault = document.getElementById("fault");
  window.onerror = (message) => {
    fault.hidden = false;
    fault.textContent = `A chart could not be drawn (${message}); the tables hold its numbers.`;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const swaps = JSON.parse(document.getElementById("swaps").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const charts = [...document.querySelectorAll(".chart")].map((box) => {
    const data = box.querySelector("script");
    const place = document.createElement("div");
    box.append(place);
    return [place, data.textContent];
  });
  const inGround = (key, value) => (dark.matches && swaps[value]) || value;
  const draw = () => {
    for (const [place, text] of charts) {
      const figure = JSON.parse(text, inGround);
      figure.layout.dragmode = touch ? false : "zoom"; // a finger scrolls the page
      Plotly.react(place, figure.data, figure.layout, {
        displayModeBar: false, // it would cover the legend; a double click undoes a zoom
      });
    }
  };
  const fitting = new ResizeObserver((seen) => {
    for (const { target } of seen) if (target.data) Plotly.Plots.resize(target);
  });
  for (const [place] of charts) fitting.observe(place);
  dark.addEventListener("change", draw);
  draw();
})();
