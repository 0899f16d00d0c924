"use strict";
// Draws the page's figures, each as it scrolls into view, in the colours of the theme and with a shared axis of steps.
(async () => {
  const problem = (text) => {
    const place = document.getElementById("problem");
    place.textContent = text;
    place.hidden = false;
  };
  if (typeof DecompressionStream === "undefined") {
    problem(document.getElementById("problem").dataset.oldBrowser);
    return;
  }
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  const figures = new Map(JSON.parse(await unpack("data")).map((figure) => [figure.name, figure]));
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // name → the element that holds the figure
  const hidden = new Set(); // the runs that are hidden
  let range = null; // the range of the step axis after a zoom

  // --- theme -------------------------------------------------------------------------------------------------
  const lookUp = () => {
    const style = getComputedStyle(document.documentElement);
    return (text) => {
      const [, name, opacity = "1"] = text.match(/^@(\w+)(?:\/([\d.]+))?$/);
      const hex = style.getPropertyValue(/^\d/.test(name) ? `--run-${name}` : `--${name}`).trim();
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
      return `rgba(${r},${g},${b},${opacity})`;
    };
  };
  const themed = (value, colour) => {
    if (typeof value === "string") return value.startsWith("@") ? colour(value) : value;
    if (Array.isArray(value)) return value.map((x) => themed(x, colour));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, x]) => [key, key === "bdata" ? x : themed(x, colour)]));
    }
    return value;
  };
  const layoutOf = (figure, colour) => {
    const layout = structuredClone(figure.layout);
    const lines = { gridcolor: "@rule", zerolinecolor: "@soft", zeroline: false, automargin: true };
    for (const key of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))) {
      layout[key] = { ...lines, ...layout[key] };
      if (layout[key].title) layout[key].title = { font: { size: 12 }, standoff: 8, ...layout[key].title };
    }
    if (figure.linked) {
      Object.assign(layout.xaxis, { showspikes: true, spikemode: "across", spikethickness: 1, spikecolor: "@soft", spikedash: "solid", spikesnap: "hovered data" });
      if (range) layout.xaxis = { ...layout.xaxis, range: [...range] };
      layout.hovermode = "x unified";
    }
    return themed({
      font: { family: "system-ui, sans-serif", size: 12, color: "@ink" },
      paper_bgcolor: "@paper/0", plot_bgcolor: "@paper/0",
      margin: { l: 10, r: 10, t: 8, b: 10 },
      dragmode: isTouch ? false : "zoom",
      hoverlabel: { bgcolor: "@card/0.92", bordercolor: "@rule", font: { color: "@ink", size: 11 } },
      ...layout,
    }, colour);
  };

  // --- drawing -----------------------------------------------------------------------------------------------
  const save = (place) => { // adds a legend, since the page's legend is not part of the figure
    const options = {
      format: "svg", filename: place.getAttribute("aria-label").replace(/[^\p{L}\p{N}]+/gu, "_"),
      width: place.clientWidth, height: place.clientHeight,
    };
    if (place.layout.showlegend) return Plotly.downloadImage(place, options);
    const lines = new Map(place.data.filter((t) => t.meta && t.visible !== false).map((t) => [t.meta.run, t]));
    const data = place.data.map((t) => ({ ...t, showlegend: lines.size > 1 && lines.get(t.meta?.run) === t }));
    const layout = { ...place.layout, showlegend: lines.size > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom" } };
    return Plotly.downloadImage({ data, layout }, options);
  };
  const isShown = (trace) => !(trace.meta && hidden.has(trace.meta.run));
  const draw = async (place) => {
    const figure = figures.get(place.id), colour = lookUp();
    const isNew = !drawn.has(place.id);
    drawn.set(place.id, place);
    const traces = figure.data.map((trace) => ({ ...themed(trace, colour), visible: isShown(trace) }));
    await Plotly.react(place, traces, layoutOf(figure, colour), {
      displayModeBar: isTouch ? false : "hover", displaylogo: false, responsive: true,
      modeBarButtons: [[{ name: "svg", title: "Save as SVG", icon: Plotly.Icons.camera, click: save }]],
    });
    if (isNew && figure.linked) link(place);
    if (isNew && figure.credit) tie(place, figure.credit);
    else if (figure.credit) place.dispatchEvent(new Event("themed"));
  };
  const others = (place) => [...drawn.values()].filter((p) => p !== place && figures.get(p.id).linked);
  const isVisible = (place) => {
    const box = place.getBoundingClientRect();
    return box.width > 0 && box.bottom > 0 && box.top < innerHeight;
  };
  const link = (place) => {
    place.on("plotly_hover", (event) => {
      const xval = event.xvals ? event.xvals[0] : event.points[0].x;
      for (const other of others(place).filter(isVisible)) Plotly.Fx.hover(other, { xval }, ["xy"], true);
    });
    place.on("plotly_unhover", () => others(place).forEach((other) => Plotly.Fx.unhover(other)));
    place.on("plotly_relayout", (change) => {
      const from = change["xaxis.range[0]"];
      const isReset = Boolean(change["xaxis.autorange"]);
      if (from === undefined && !isReset) return;
      const wanted = isReset ? null : [from, change["xaxis.range[1]"]];
      if (JSON.stringify(wanted) === JSON.stringify(range)) return;
      range = wanted;
      const update = isReset ? { "xaxis.autorange": true } : { "xaxis.range": [...range] };
      others(place).forEach((other) => Plotly.relayout(other, update));
    });
  };

  // --- the credit view ---------------------------------------------------------------------------------------
  const numbers = ({ bdata }) => new Float32Array(Uint8Array.from(atob(bdata), (c) => c.charCodeAt(0)).buffer);
  const short = (x) => (Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2) : String(+x.toPrecision(4)));
  const tie = (place, credit) => {
    const card = place.closest(".credit");
    const slider = card.querySelector("input"), step = card.querySelector("output");
    const pictures = [...card.querySelectorAll("img")], readout = card.querySelector(".readout");
    const columns = Object.entries(credit.columns).map(([name, x]) => [name, numbers(x)]);
    const weights = Object.entries(credit.weights).map(([name, x]) => [name, numbers(x)]);
    const cell = (kind, content) => {
      const made = document.createElement(kind);
      made.append(content);
      return made;
    };
    const row = (...cells) => {
      const made = document.createElement("tr");
      made.append(...cells);
      return made;
    };
    const jump = (t) => {
      const button = cell("button", String(t));
      button.addEventListener("click", () => go(t));
      return button;
    };
    const table = (rows) => {
      const made = document.createElement("table");
      made.append(...rows);
      return made;
    };
    const go = (t) => {
      slider.value = t;
      step.textContent = t;
      credit.films.forEach(({ steps, pictures: film }, number) => {
        const later = steps.findIndex((s) => s > t);
        pictures[number].src = `data:image/webp;base64,${film[later < 0 ? steps.length - 1 : later - 1]}`;
      });
      const named = (name) => (name === credit.own ? cell("b", name) : name);
      readout.replaceChildren(
        table([
          row(cell("th", "action"), cell("td", credit.actions[t])),
          ...columns.map(([name, x]) => row(cell("th", name), cell("td", short(x[t])))),
        ]),
        table([
          row(cell("th", "estimator"), cell("th", "Ψ here"), cell("th", "actions sharing it"), cell("th", "largest at")),
          ...weights.map(([name, x]) =>
            row(cell("th", named(name)), cell("td", short(x[t])), cell("td", String(credit.spread[name])), cell("td", credit.most[name] === null ? "all alike" : jump(credit.most[name])))),
        ]),
      );
      return Plotly.relayout(place, { "shapes[0].x0": t, "shapes[0].x1": t });
    };
    slider.addEventListener("input", () => go(+slider.value));
    place.addEventListener("themed", () => go(+slider.value));
    place.on("plotly_click", (event) => go(Math.round(event.points[0].x)));
    go(+slider.value);
  };

  // --- the reader --------------------------------------------------------------------------------------------
  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const run = +chip.dataset.run;
      if (!hidden.delete(run)) hidden.add(run);
      chip.setAttribute("aria-pressed", String(!hidden.has(run)));
      for (const place of drawn.values()) {
        const traces = figures.get(place.id).data;
        if (traces.some((trace) => trace.meta)) Plotly.restyle(place, { visible: traces.map(isShown) });
      }
    });
  }
  const places = [...document.querySelectorAll(".chart")];
  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => near.observe(place));
  addEventListener("beforeprint", () => places.filter((p) => p.offsetParent && !drawn.has(p.id)).forEach(draw));
  darkness.addEventListener("change", () => [...drawn.values()].forEach(draw));
})();
