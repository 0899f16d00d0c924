// Plotly figures use the colours of the page and follow their changes.
addEventListener("load", () => {
  const plots = document.querySelectorAll(".lab .plotly-graph-div");
  const colour = () => {
    const page = getComputedStyle(document.body);
    const ink = page.getPropertyValue("--md-default-fg-color--light"), grid = page.getPropertyValue("--md-default-fg-color--lightest");
    const change = { "font.color": ink, "font.family": page.fontFamily };
    for (const axis of ["xaxis", "yaxis"]) { change[axis + ".gridcolor"] = grid; change[axis + ".linecolor"] = grid; }
    plots.forEach((plot) => Plotly.relayout(plot, change));
  };
  if (plots.length) {
    // Each figure was drawn too wide, before its neighbour existed.
    plots.forEach((plot) => Plotly.Plots.resize(plot));
    colour();
    new MutationObserver(colour).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
  }
});
