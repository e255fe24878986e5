// The curves: every chart of the page's data, for all its runs.

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
const tick = value => (Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(4)}k` : String(+value.toPrecision(4)));

// An element with its attributes' properties and its children; text is only ever text.
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const charts = (() => {
  const PALETTE = 6;
  const DASHES = [[], [7, 4], [2, 3]];
  const WHOLE = [1, 2, 5].flatMap(digit => [0, 1, 2, 3, 4, 5, 6].map(power => digit * 10 ** power)).sort((a, b) => a - b);
  const AXES = {
    step: { label: "steps", scale: () => 1 },
    tokens: { label: "completion tokens", scale: () => 1 },
    seconds: { label: "time in steps", scale: longest => (longest > 600 ? 60 : 1) },
  };
  let drawn = [];

  const isHeldOut = line => line.metric.startsWith("eval/");
  const table = (run, line) => run[isHeldOut(line) ? "eval" : "train"];

  // One entry for each line of each run: its numbers, and how it looks.
  function seriesOf(chart, axis, unit) {
    const several = data.runs.length > 1;
    return data.runs.flatMap((run, place) => chart.lines.flatMap((line, index) => {
      const columns = table(run, line);
      if (!columns[line.metric]) return [];
      return [{
        label: several ? `${run.name}${chart.lines.length > 1 ? `, ${line.label}` : ""}` : line.label,
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

  function look(series) {
    const stroke = theme.paint(series.colour);
    return {
      label: series.label,
      stroke,
      width: series.strong ? 2.5 : 1.5,
      dash: series.dash,
      points: { show: series.strong || series.x.length <= 60, size: series.strong ? 8 : 4, fill: stroke },
      value: (plot, value, _, index) => {
        const at = series.errors && index != null ? series.x.indexOf(plot.data[0][index]) : -1;
        const error = at >= 0 ? series.errors[at] : null;
        return shortNumber(value) + (error ? ` ± ${shortNumber(error)}` : "");
      },
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

  function options(chart, all, axis, unit, width) {
    const { label } = AXES[axis];
    const units = { step: "", tokens: "", seconds: unit === 60 ? " (min)" : " (s)" };
    return {
      width,
      height: width > 700 ? 340 : 240,
      scales: { x: { time: false }, y: { range } },
      axes: [
        axisLook(label + units[axis], { size: 34, space: 60, ...(axis === "step" ? { incrs: WHOLE } : {}) }),
        axisLook(chart.unit, { size: 52 }),
      ],
      series: [{ label: label + units[axis], value: (plot, value) => (value == null ? "–" : tick(value)) }, ...all.map(look)],
      cursor: { y: false, dataIdx: (plot, series, index) => (series ? nearest(plot, series, index) : index), sync: { key: "all" } },
      legend: { markers: {
        width: (plot, at) => (all[at - 1]?.dash.length ? 2 : 0),
        dash: () => "dashed",
        fill: (plot, at) => (all[at - 1]?.dash.length ? "transparent" : theme.paint(all[at - 1]?.colour)),
      } },
      hooks: { draw: [plot => errorBars(plot, all)] },
    };
  }

  function draw(figure) {
    const axis = document.getElementById("x-axis").value;
    const longest = Math.max(...data.runs.flatMap(run => [0, run.train.seconds.at(-1) ?? 0]));
    const unit = AXES[axis].scale(longest);
    const all = seriesOf(figure.chart, axis, unit);
    const columns = uPlot.join(all.map(series => [series.x, series.y]));
    figure.plot?.destroy();
    figure.plot = new uPlot(options(figure.chart, all, axis, unit, figure.place.clientWidth), columns, figure.place);
  }

  function figureOf(chart) {
    const place = element("div", { className: "plot" });
    const caption = element("figcaption", {}, element("h3", { textContent: chart.title }));
    if (chart.note) caption.append(element("p", { className: "quiet", textContent: chart.note }));
    document.getElementById("charts").append(element("figure", { className: "chart" }, caption, place));
    return { chart, place, plot: null, width: 0 };
  }

  const drawAll = () => drawn.forEach(draw);

  function start() {
    drawn = data.charts.map(figureOf);
    const resized = new ResizeObserver(entries => entries.forEach(entry => {
      const figure = drawn.find(each => each.place === entry.target);
      const width = figure.place.clientWidth;
      if (width && width !== figure.width) { figure.width = width; draw(figure); }
    }));
    drawn.forEach(figure => resized.observe(figure.place));
    document.getElementById("x-axis").addEventListener("change", drawAll);
    theme.onChange(drawAll);
  }

  return { start };
})();
