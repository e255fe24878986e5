// The curves: every chart of the page's data, for all its runs.

// What is drawn: curves.charts, curves.runs; evaluations.runs, evaluations.texts. A page that is watched gets others.
const data = JSON.parse(document.getElementById("data").textContent);

// Three significant digits: 0.0450, 1.23, 128, 12.3k, 1.23e-5.
function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  for (const [scale, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 0.9995 * scale) return (value / scale).toPrecision(3) + suffix;
  }
  return value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(2) : value.toPrecision(3);
}

// A number on an axis: no more digits than the ticks need.
function tick(value) {
  if (Math.abs(value) >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
  return value !== 0 && Math.abs(value) < 1e-3 ? (+value.toPrecision(4)).toExponential() : String(+value.toPrecision(4));
}

// An element with its attributes' properties and its children; text is only ever text.
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const charts = (() => {
  const PALETTE = 6;
  const FEW = 60;  // steps whose points are drawn one by one
  const DASHES = [[], [7, 4], [2, 3]];
  const WHOLE = [1, 2, 5].flatMap(digit => [0, 1, 2, 3, 4, 5, 6].map(power => digit * 10 ** power)).sort((a, b) => a - b);
  const AXES = {
    step: { label: "steps", scale: () => 1 },
    tokens: { label: "completion tokens", scale: () => 1 },
    seconds: { label: "time in steps", scale: longest => (longest > 600 ? 60 : 1) },
  };
  const get = id => document.getElementById(id);
  let drawn = [];

  const isHeldOut = line => line.metric.startsWith("eval/");
  const table = (run, line) => run[isHeldOut(line) ? "eval" : "train"];

  // One entry for each line of each run: its numbers, and how it looks.
  function seriesOf(chart, axis, unit) {
    const runs = data.curves.runs, several = runs.length > 1;
    return runs.flatMap((run, place) => chart.lines.flatMap((line, index) => {
      const columns = table(run, line);
      if (!columns[line.metric]) return [];
      return [{
        label: several ? `${run.name}${chart.lines.length > 1 ? `, ${line.label}` : ""}` : line.label,
        metric: line.metric,
        x: columns[axis].map(value => value / unit),
        y: columns[line.metric],
        errors: line.error ? columns[line.error] : null,
        colour: `c${(several ? place : index) % PALETTE}`,
        dash: several ? DASHES[index % DASHES.length] : [],
        strong: isHeldOut(line),
      }];
    }));
  }

  // The nearest point of a line that has a number, for the values under the cursor.
  function nearest(plot, series, index) {
    const values = plot.data[series];
    for (let away = 0; away < values.length; away++) {
      if (values[index - away] != null) return index - away;
      if (values[index + away] != null) return index + away;
    }
    return index;
  }

  function errorBars(plot, all) {
    const { ctx } = plot;
    ctx.save();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    all.forEach((series, place) => {
      if (!series.errors || !plot.series[place + 1].show) return;
      ctx.strokeStyle = theme.paint(series.colour);
      ctx.beginPath();
      series.x.forEach((x, i) => {
        if (series.y[i] === null || series.errors[i] === null) return;
        const at = plot.valToPos(x, "x", true);
        ctx.moveTo(at, plot.valToPos(series.y[i] - series.errors[i], "y", true));
        ctx.lineTo(at, plot.valToPos(series.y[i] + series.errors[i], "y", true));
      });
      ctx.stroke();
    });
    ctx.restore();
  }

  // The value of a line in the legend: under the cursor, or else its last one.
  function told(plot, series, index) {
    const at = index == null ? series.y.findLastIndex(value => value !== null) : series.x.indexOf(plot.data[0][index]);
    if (at < 0) return "–";
    const error = series.errors?.[at];
    return shortNumber(series.y[at]) + (error ? ` ± ${+error.toPrecision(2)}` : "");
  }

  function look(figure, place) {
    const series = figure.all[place], stroke = theme.paint(series.colour);
    return {
      label: series.label,
      stroke,
      width: series.strong ? 2.5 : 1.5,
      dash: series.dash,
      points: { show: () => series.strong || figure.all[place].x.length <= FEW, size: series.strong ? 8 : 4, fill: stroke },
      value: (plot, value, _, index) => told(plot, figure.all[place], index),
    };
  }

  // From 0 where nothing is below it, so that heights can be compared.
  function range(plot, low, high) {
    if (low === null || low === undefined) return [0, 1];
    const bottom = Math.min(0, low), room = 0.06 * (high - bottom) || 1;
    return [bottom < 0 ? bottom - room : 0, high + room];
  }

  const axisLook = (label, more) => ({
    label,
    labelSize: 22,
    labelFont: "12px system-ui, sans-serif",
    font: "12px system-ui, sans-serif",
    stroke: theme.paint("quiet"),
    grid: { stroke: theme.paint("line"), width: 1 },
    ticks: { show: false },
    values: (plot, values) => values.map(tick),
    ...more,
  });

  function options(figure, axis, unit, width) {
    const { label } = AXES[axis], { all } = figure;
    const units = { step: "", tokens: "", seconds: unit === 60 ? " (min)" : " (s)" };
    const place = plot => plot.data[0].at(-1);
    return {
      width,
      height: width > 700 ? 340 : 240,
      scales: { x: { time: false }, y: { range } },
      axes: [
        axisLook(label + units[axis], { size: 34, space: 60, ...(axis === "step" ? { incrs: WHOLE } : {}) }),
        axisLook(figure.chart.unit, { size: 52 }),
      ],
      series: [{ label: label + units[axis], value: (plot, value) => tick(value ?? place(plot) ?? 0) }, ...all.map((_, i) => look(figure, i))],
      cursor: { y: false, dataIdx: (plot, series, index) => (series ? nearest(plot, series, index) : index), sync: { key: "all" } },
      legend: { markers: {
        width: (plot, at) => (all[at - 1]?.dash.length ? 2 : 0),
        dash: () => "dashed",
        fill: (plot, at) => (all[at - 1]?.dash.length ? "transparent" : theme.paint(all[at - 1]?.colour)),
      } },
      hooks: { draw: [plot => errorBars(plot, figure.all)] },
    };
  }

  // What the axis counts, in which unit, and the series of a chart on it.
  function laidOut(chart) {
    const axis = get("x-axis").value;
    const unit = AXES[axis].scale(Math.max(...data.curves.runs.flatMap(run => [0, run.train.seconds.at(-1) ?? 0])));
    const all = seriesOf(chart, axis, unit);
    return { axis, unit, all, columns: uPlot.join(all.map(series => [series.x, series.y])) };
  }

  function draw(figure) {
    const { axis, unit, all, columns } = laidOut(figure.chart);
    const hidden = new Set(figure.plot?.series.filter(series => !series.show).map(series => series.label));
    Object.assign(figure, { all, unit });
    figure.plot?.destroy();
    figure.plot = new uPlot(options(figure, axis, unit, figure.place.clientWidth), columns, figure.place);
    all.forEach((series, place) => {
      figure.plot.root.querySelectorAll(".u-series")[place + 1].title = series.metric;
      if (hidden.has(series.label)) figure.plot.setSeries(place + 1, { show: false });
    });
  }

  // New numbers in a plot that is there: what the reader looks at closer, or has hidden, stays so.
  function renew(figure) {
    const { unit, all, columns } = laidOut(figure.chart), plot = figure.plot;
    const same = plot && unit === figure.unit && all.map(each => each.label).join("\n") === figure.all.map(each => each.label).join("\n");
    if (!same) return draw(figure);
    const { min, max } = plot.scales.x, x = plot.data[0];
    const closer = min > x[0] || max < x.at(-1);
    figure.all = all;
    plot.batch(() => {
      plot.setData(columns, !closer);
      if (closer) plot.setScale("x", { min, max });
    });
  }

  function figureOf(chart) {
    const place = element("div", { className: "plot" });
    const title = element("h3", { textContent: chart.title, title: chart.lines.map(line => line.metric).join(", ") });
    const caption = element("figcaption", {}, title);
    if (chart.note) caption.append(element("p", { className: "quiet", textContent: chart.note }));
    const figure = { chart, place, node: element("figure", { className: "chart" }, caption, place), plot: null, width: 0 };
    resized.observe(place);
    return figure;
  }

  const drawAll = () => drawn.forEach(draw);

  const resized = new ResizeObserver(entries => entries.forEach(entry => {
    const figure = drawn.find(each => each.place === entry.target);
    const width = figure?.place.clientWidth;
    if (width && width !== figure.width) { figure.width = width; draw(figure); }
  }));

  // The charts that there are numbers for: those that are drawn already are renewed, the others begin.
  function show() {
    const known = new Map(drawn.map(figure => [figure.chart.title, figure]));
    drawn = data.curves.charts.map(chart => Object.assign(known.get(chart.title) ?? figureOf(chart), { chart }));
    const kept = new Set(drawn);
    for (const figure of known.values()) if (!kept.has(figure)) { figure.plot?.destroy(); figure.node.remove(); }
    drawn.forEach((figure, place) => {
      const home = get(place ? "charts" : "first-chart");
      const next = home.children[place ? place - 1 : 0];
      if (next !== figure.node) home.insertBefore(figure.node, next ?? null);
      if (figure.plot) renew(figure);
    });
    get("curves").hidden = drawn.length < 2;
    get("no-curves").hidden = drawn.length > 0;
    document.querySelector("#curve .controls").hidden = !drawn.length;
  }

  function start() {
    show();
    get("x-axis").addEventListener("change", drawAll);
    theme.onChange(drawAll);
  }

  return { start, show };
})();
