// Draws the charts of the page from the numbers in it, in the colours of the theme.
"use strict";
(() => {
  const { runs, tasks } = JSON.parse(document.getElementById("data").textContent);
  const OPTIMIZERS = { none: "untrained", sgd: "SGD", adam: "Adam" };
  const PHASES = {
    sgd: "SGD step", evolution: "evolution step", diversity: "diversity",
    final_scores: "final scores", checkpoint: "checkpoint", idle: "waiting in the SGD step",
    scoring: "scoring children", making: "making children", exchange: "waiting for parents",
    planning: "planning", evolution_rest: "evolution step, the rest",
  };
  const ORIGIN_SYMBOLS = { initial: "square", anchor: "diamond" };
  // Name of a colour, dashes of lines, sign in the legend.
  const METHOD_LOOKS = {
    "single": ["best", "dash", "dashed"],
    "population": ["run-1", "dashdot", "dashed"],
    "sgd-only": ["run-2", "dot", "dotted"],
    "esgd": ["run-0", "solid", "line"],
    "esgd-anchor": ["run-3", "longdash", "dashed"],
  };
  const VARIANT_COLORS = ["run-4", "run-5", "run-6", "run-7"];
  const NUM_RUN_COLORS = 8;
  const RUN_SYMBOLS = ["circle", "square", "diamond", "cross"];
  const NUM_PHASE_COLORS = 11;
  // In the drawing of a family the SGD step takes this part of a generation, evolution the rest.
  const SGD_PART = 0.55;
  const narrow = window.matchMedia("(max-width: 48rem)");
  const touched = window.matchMedia("(pointer: coarse)");

  // Numbers and texts -----------------------------------------------------------------------------

  const shown = (value, digits = 6) =>
    value === null ? "+inf" : String(Number(value.toPrecision(digits)));
  const percent = (value) => (value === null ? "" : `${Math.round(100 * value)}%`);
  const finite = (values) => values.filter((value) => value !== null);
  // Spread arguments have a limit that long runs would meet.
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const places = (values) => values.map((_, place) => place);

  /** Return a text for plotly, which takes some markup: escaped, and broken into lines. */
  function plain(text) {
    const width = narrow.matches ? 38 : 64;
    const lines = String(text).split("\n").flatMap((line) => wrapped(line, width));
    return lines.map(escaped).join("<br>");
  }

  function escaped(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  const short = (text) => (text.length > 40 ? `${text.slice(0, 39)}…` : text);

  function wrapped(line, width) {
    const lines = [];
    while (line.length > width) {
      const space = line.lastIndexOf(" ", width);
      const end = space > width / 2 ? space : width;
      lines.push(line.slice(0, end));
      line = `   ${line.slice(end).trim()}`;
    }
    return [...lines, line];
  }

  /** Return [lowest, highest] of the values without those far away from the middle half. */
  function fences(values, isLog) {
    const sorted = finite(values).sort((a, b) => a - b);
    if (sorted.length === 0) return [0, 1];
    const [to, from] = isLog ? [Math.log, Math.exp] : [(value) => value, (value) => value];
    const first = to(sorted[Math.floor(0.25 * (sorted.length - 1))]);
    const third = to(sorted[Math.ceil(0.75 * (sorted.length - 1))]);
    const reach = third > first ? 3 * (third - first) : Infinity;
    const [low, high] = [sorted[0], sorted[sorted.length - 1]];
    return [Math.max(low, from(first - reach)), Math.min(high, from(third + reach))];
  }

  const isWide = (low, high) => low > 0 && high / low > 10;

  // The look of every chart -----------------------------------------------------------------------

  function palette() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  function layoutOf(color, more) {
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("muted") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 52, r: 12, t: 8, b: 44 },
      hoverlabel: {
        bgcolor: color("surface"),
        bordercolor: color("line"),
        font: { color: color("text"), size: 13 },
        align: "left",
        namelength: -1,
      },
      showlegend: false, // ours can be reached by keyboard, and wraps well
      // A finger that drags scrolls the page.
      dragmode: touched.matches ? false : "zoom",
      hovermode: "x unified",
      ...more,
    };
  }

  function axis(color, title, more) {
    return {
      title: { text: escaped(short(title)), standoff: 8, font: { size: 13 } },
      gridcolor: color("grid"),
      linecolor: color("line"),
      zeroline: false,
      automargin: true,
      fixedrange: touched.matches,
      ...more,
    };
  }

  function generationAxis(color, generations, more) {
    const span = most(generations) - least(generations);
    const wish = span / (narrow.matches ? 6 : 12);
    const steps = [1, 2, 5].flatMap((digit) => [0, 1, 2, 3, 4, 5].map((p) => digit * 10 ** p));
    const dtick = steps.sort((a, b) => a - b).find((step) => step >= wish) || 1;
    const range = [least(generations) - 0.6, most(generations) + 0.6];
    return axis(color, "generation", {
      dtick, tick0: 0, range, showgrid: false,
      unifiedhovertitle: { text: "generation %{x}" },
      spikecolor: color("line"), spikethickness: 1, spikedash: "solid",
      ...more,
    });
  }

  /**
   * Return a scale with labels at 1, 2 and 5 of each decade where there are few `decades`; where
   * none of these may lie between low and high, plotly chooses.
   */
  function scale(isLog, low, high, decades = 3) {
    if (!isLog) return {};
    const some = { dtick: Math.log10(high / low) > decades ? 1 : "D2" };
    return { type: "log", tickformat: "~g", ...(high / low > 5 ? some : {}) };
  }

  /** Return what our legend needs of a trace. Traces of a group are hidden together. */
  function legend(label, sign, group = label) {
    return { meta: { label, sign, group } };
  }

  function line(x, y, name, color, more) {
    return {
      type: "scatter", mode: x.length > 60 ? "lines" : "lines+markers", x, y, name: escaped(name),
      line: { color, width: 2 }, marker: { color, size: 5 }, ...legend(name, "line"),
      ...more,
    };
  }

  function bars(x, y, name, color, hovertemplate) {
    return {
      type: "bar", x, y, name: escaped(name), marker: { color, line: { width: 0 } }, hovertemplate,
      ...legend(name, "area"),
    };
  }

  function dots(name, color, size, symbol, more) {
    return {
      type: "scatter", mode: "markers", ...legend(name, "dot"),
      marker: { color, size, symbol, opacity: 0.65, line: { width: 1.5, color } },
      hovertemplate: "%{text}<extra></extra>",
      ...more,
    };
  }

  /** Return what the arrow keys step through: one generation after the other. */
  function stopsOf(generations, say) {
    return places(generations).map((place) => ({
      at: { xval: generations[place] },
      text: `Generation ${generations[place]}: ${say(place)}`,
    }));
  }

  /** Return what the arrow keys step through: the dots of one trace. */
  function stopsAt(curve, texts) {
    return texts.map((text, place) => ({ at: [{ curveNumber: curve, pointNumber: place }], text }));
  }

  // The charts of one run -------------------------------------------------------------------------

  function fitness({ run, options, color }) {
    const { rows, members } = run;
    const x = rows.generation;
    const low = least(finite(rows.best_ever));
    const highest = most(finite([...rows.worst, ...members.fitness]));
    const usual = most(finite([...rows.upper_quartile, ...rows.median, ...rows.elite_average]));
    const top = usual > low ? Math.min(highest, low + 3 * (usual - low)) : highest;
    const cut = (values) => values.map((value) => Math.min(value ?? top, top));
    const isBand = rows.worst.some((worst, place) => worst !== rows.best[place]);
    const traces = [];

    function band(upper, lower, name, opacity) {
      const edge = {
        type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip",
      };
      const fillcolor = `rgba(${color("band")},${opacity})`;
      traces.push({ ...edge, y: cut(upper), ...legend(name, "") });
      traces.push({ ...edge, y: cut(lower), fill: "tonexty", fillcolor, ...legend(name, "area") });
    }

    if (isBand) {
      band(rows.worst, rows.best, "best to worst", 0.14);
      const hasQuartiles = finite(rows.lower_quartile).length > 0;
      if (hasQuartiles) band(rows.upper_quartile, rows.lower_quartile, "middle half", 0.26);
    }
    for (const optimizer of options.individuals ? Object.keys(OPTIMIZERS) : []) {
      const own = places(members.uid).filter((i) => members.optimizer[i] === optimizer);
      if (own.length === 0) continue;
      const symbols = own.map((i) => symbolOf(members.fitness[i], -Infinity, top));
      traces.push(dots(OPTIMIZERS[optimizer], color(optimizer), 5, symbols, {
        x: own.map((i) => members.generation[i] + (isBand ? aside(members.uid[i]) : 0)),
        y: own.map((i) => Math.min(members.fitness[i] ?? top, top)),
        text: own.map((i) => plain(memberText(members, i))),
      }));
    }
    const told = places(x).map((place) => {
      const values = [["best", rows.best[place]]];
      if (isBand) {
        values.push(["elite average", rows.elite_average[place]], ["median", rows.median[place]]);
        values.push(["worst", rows.worst[place]]);
      }
      return values.map(([name, value]) => `${name} ${shown(value)}`);
    });
    function curve(values, name, tone, dash) {
      const hovertemplate = options.individuals
        ? "generation %{x}<br>%{customdata}<extra></extra>"
        : `%{customdata}<extra>${name}</extra>`;
      const look = { color: color(tone), width: 2, dash };
      const customdata = options.individuals
        ? told.map((lines) => lines.join("<br>"))
        : values.map((value) => shown(value));
      const y = values.map((value) => (value === null ? null : Math.min(value, top)));
      const sign = legend(name, dash === "dot" ? "dotted" : "line");
      const more = { line: look, customdata, hovertemplate, ...sign };
      traces.push(line(x, y, name, color(tone), more));
      return traces.length - 1;
    }
    if (isBand) {
      curve(rows.median, "median", "median", "solid");
      curve(rows.elite_average, "elite average", "elite", "dot");
    }
    if (rows.best_ever.some((value, place) => value !== rows.best[place])) {
      curve(rows.best_ever, "best ever", "best", "dot");
    }
    const best = curve(rows.best, "best", "best", "solid");
    const texts = places(x).map((place) => `Generation ${x[place]}: ${told[place].join(", ")}`);
    return {
      traces,
      layout: {
        xaxis: generationAxis(color, x),
        yaxis: axis(color, "fitness", scale(options.log, low, top)),
        hovermode: options.individuals ? "closest" : "x unified",
      },
      stops: options.individuals
        ? stopsAt(best, texts)
        : stopsOf(x, (place) => told[place].join(", ")),
      notes: options.individuals ? notes(members, members.fitness, -Infinity, top) : [],
    };
  }

  /** Return where an individual stands beside the middle of a generation, the same in each. */
  const aside = (uid) => 0.5 * (((uid * 0.618) % 1) - 0.5);

  /** Return the symbol of a dot that is drawn at the edge where it lies outside [low, high]. */
  function symbolOf(value, low, high) {
    if (value === null) return "x";
    return value > high ? "triangle-up" : value < low ? "triangle-down" : "circle";
  }

  /** Return what to know of dots: which are drawn at the edge, and whether some are left out. */
  function notes({ every }, values, low, high) {
    const failed = values.filter((value) => value === null).length;
    const far = values.filter((value) => value !== null && (value > high || value < low)).length;
    const told = [];
    if (far > 0) told.push(`Triangles at the edge: ${far} beyond the axis.`);
    if (failed > 0) told.push(`Crosses at the edge: ${failed} that failed, fitness +inf.`);
    if (every > 1) told.push(`There is room for the dots of one generation in ${every}.`);
    return told;
  }

  function memberText(members, i) {
    const rate = members.learning_rate[i];
    const trained = rate === null ? "" : `, learning rate ${shown(rate, 3)}`;
    return `individual ${members.uid[i]}, ${members.origin[i]}\n`
      + `generation ${members.generation[i]}, fitness ${shown(members.fitness[i])}\n`
      + `${OPTIMIZERS[members.optimizer[i]]}${trained}`;
  }

  function children({ run, color }) {
    const { generation: x, share: y } = run.children;
    const hovertemplate = "%{y:.0%}<extra></extra>";
    const traces = [line(x, y, "children", color("median"), { hovertemplate, ...legend("", "") })];
    return {
      traces,
      layout: {
        xaxis: generationAxis(color, run.rows.generation),
        yaxis: axis(color, "share of the elite", { range: [-0.03, 1.03], tickformat: ".0%" }),
      },
      stops: stopsOf(x, (place) => `${percent(y[place])} of the elite are children`),
    };
  }

  function diversity({ run, color }) {
    const x = run.rows.generation;
    const hovertemplate = "%{y:.4~g}";
    const traces = [line(x, run.rows.diversity, "all", color("best"), { hovertemplate })];
    for (const [optimizer, values] of Object.entries(run.rows.diversity_by_optimizer)) {
      if (finite(values).length === 0) continue;
      const name = OPTIMIZERS[optimizer];
      traces.push(line(x, values, name, color(optimizer), { hovertemplate }));
    }
    const say = (place) =>
      traces
        .filter((trace) => trace.y[place] !== null)
        .map((trace) => `${trace.meta.label} ${shown(trace.y[place], 4)}`)
        .join(", ");
    return {
      traces,
      layout: {
        xaxis: generationAxis(color, x),
        yaxis: axis(color, "mean distance", { rangemode: "tozero" }),
      },
      stops: stopsOf(x, say),
    };
  }

  function optimizers({ run, color }) {
    const x = run.rows.generation;
    const traces = Object.entries(run.rows.individuals_by_optimizer)
      .filter(([, counts]) => counts.some((count) => count > 0))
      .map(([name, counts]) => bars(x, counts, OPTIMIZERS[name], color(name), "%{y}"));
    const say = (place) =>
      traces.map((trace) => `${trace.meta.label} ${trace.y[place]}`).join(", ");
    const totals = places(x).map((place) => traces.reduce((sum, { y }) => sum + y[place], 0));
    return {
      traces,
      layout: {
        barmode: "stack",
        bargap: x.length > 40 ? 0 : 0.25,
        xaxis: generationAxis(color, x),
        yaxis: axis(color, "individuals", most(totals) <= 5 ? { dtick: 1 } : {}),
      },
      stops: stopsOf(x, say),
    };
  }

  function seconds({ run, color }) {
    const x = run.rows.generation;
    const phases = [...new Set([...Object.keys(PHASES), ...Object.keys(run.rows.seconds)])];
    const traces = phases.flatMap((phase, place) => {
      const values = run.rows.seconds[phase];
      const tone = color(`phase-${place % NUM_PHASE_COLORS}`);
      const name = PHASES[phase] || phase;
      return values ? [bars(x, values, name, tone, "%{y:.3~g} s")] : [];
    });
    const say = (place) =>
      traces
        .filter((trace) => trace.y[place] !== null)
        .map((trace) => `${trace.meta.label} ${shown(trace.y[place], 3)} s`)
        .join(", ");
    return {
      traces,
      layout: {
        barmode: "stack",
        bargap: x.length > 40 ? 0 : 0.25,
        xaxis: generationAxis(color, x),
        yaxis: axis(color, "seconds", { tickformat: "~g" }),
      },
      stops: stopsOf(x, say),
    };
  }

  // Hyper-parameters ------------------------------------------------------------------------------

  const OUTCOMES = {
    fitness: { title: "fitness after the step", of: (before, after) => after },
    gain: {
      title: "gain (fitness before − after)",
      of: (before, after) => (before === null || after === null ? null : before - after),
    },
  };

  function settings({ run, options, color }) {
    const { steps } = run;
    const setting = steps.settings[options.setting];
    const outcome = OUTCOMES[options.outcome];
    const drawn = places(steps.uid).filter((i) => {
      const generation = steps.generation[i];
      return generation >= options.from && generation <= options.to && setting.values[i] !== null;
    });
    const results = steps.uid.map((_, i) => outcome.of(steps.fitness_before[i], steps.fitness[i]));
    const isFitness = options.outcome === "fitness";
    const present = drawn.filter((i) => isFitness || results[i] !== null);
    const values = present.map((i) => results[i]);
    const isLog = isFitness && isWide(least(finite(values)), most(finite(values)));
    const [low, high] = fences(values, isLog);
    const chosen = isNumeric(setting) ? [] : drawn.map((i) => setting.values[i]);
    const words = [...new Set(chosen)].sort();
    const across = (i) => words.length > 0
      ? words.indexOf(setting.values[i]) + aside(steps.uid[i] + steps.generation[i])
      : setting.values[i];
    const traces = [];
    const stops = [];
    for (const optimizer of Object.keys(OPTIMIZERS)) {
      const own = present.filter((i) => steps.optimizer[i] === optimizer);
      if (own.length === 0) continue;
      const symbols = own.map((i) =>
        symbolOf(results[i], low, high) + (steps.undone[i] && results[i] !== null ? "-open" : ""));
      traces.push(dots(OPTIMIZERS[optimizer], color(optimizer), 7, symbols, {
        x: own.map(across),
        y: own.map((i) => Math.max(low, Math.min(results[i] ?? high, high))),
        text: own.map((i) => plain(stepText(steps, i))),
      }));
      stops.push(...stopsAt(traces.length - 1, own.map((i) => stepText(steps, i))));
    }
    const [left, right] = [least(drawn.map(across)), most(drawn.map(across))];
    const ticks = words.length > 0
      ? { tickvals: places(words), ticktext: words.map((word) => escaped(short(String(word)))) }
      : { ...scale(isWide(left, right), left, right, narrow.matches ? 1.7 : 3), tickformat: "~g" };
    return {
      traces,
      layout: {
        xaxis: axis(color, setting.name, ticks),
        yaxis: axis(color, outcome.title, { ...scale(isLog, low, high), tickformat: "~g" }),
        hovermode: "closest",
      },
      stops,
      notes: notes(steps, values, low, high),
    };
  }

  const isNumeric = (setting) => finite(setting.values).every((value) => typeof value === "number");

  function stepText(steps, i) {
    const drawn = steps.settings
      .filter((setting) => setting.values[i] !== null && setting.values[i] !== 0)
      .map((setting) => `${setting.name} ${settingText(setting.values[i])}`);
    const undone = steps.undone[i] ? ", undone by back-off" : "";
    return `individual ${steps.uid[i]}, generation ${steps.generation[i]}\n`
      + `${OPTIMIZERS[steps.optimizer[i]]}, ${drawn.join(", ")}\n`
      + `fitness ${shown(steps.fitness_before[i])} → ${shown(steps.fitness[i])}${undone}`;
  }

  const settingText = (value) => (typeof value === "number" ? shown(value, 4) : value);

  // Family ----------------------------------------------------------------------------------------

  function family({ run, color }) {
    const { uid, start, end, lane, told, optimizers: trained, edges, origin } = run.family;
    const curves = { x: [], y: [] };
    for (const [parent, child] of edges) {
      const from = Math.max(start[parent], Math.floor(start[child]) - 1 + SGD_PART);
      for (let t = 0; t <= 1.001; t += 0.125) {
        curves.x.push(from + t * (start[child] - from));
        curves.y.push(lane[parent] + t * t * (3 - 2 * t) * (lane[child] - lane[parent]));
      }
      curves.x.push(null);
      curves.y.push(null);
    }
    const lives = { x: [], y: [] };
    const parts = {};
    for (const i of places(uid)) {
      const last = i === 0 ? end[i] : end[i] - 1 + SGD_PART;
      lives.x.push(start[i], Math.max(start[i], last), null);
      lives.y.push(lane[i], lane[i], null);
      for (const [generation, optimizer, undone] of trained[i]) {
        const part = (parts[`${optimizer} ${undone}`] ??= { optimizer, undone, x: [], y: [] });
        part.x.push(Math.max(start[i], generation - 1), generation - 1 + SGD_PART, null);
        part.y.push(lane[i], lane[i], null);
      }
    }
    const still = { type: "scatter", mode: "lines", hoverinfo: "skip" };
    const traces = [
      { ...still, ...curves, line: { color: color("none"), width: 1 }, opacity: 0.55 },
      { ...still, ...lives, line: { color: color("none"), width: 1.5 } },
    ];
    for (const key of Object.keys(parts).sort().reverse()) {
      const { optimizer, undone, x, y } = parts[key];
      const name = `${OPTIMIZERS[optimizer]}${undone ? ", undone by back-off" : ""}`;
      traces.push({
        ...still, x, y, ...legend(name, undone ? "dotted" : "line"),
        line: { color: color(optimizer), width: 4, dash: undone ? "dot" : "solid" },
      });
    }
    traces.push({
      type: "scatter", mode: "markers", x: start, y: lane,
      marker: {
        size: uid.map((_, i) => (i === 0 ? 17 : 9)),
        symbol: uid.map((_, i) => (i === 0 ? "star" : ORIGIN_SYMBOLS[origin[i]] || "circle")),
        color: uid.map((_, i) => (i === 0 ? color("elite") : color("surface"))),
        line: { width: 1.5, color: color("text") },
        opacity: 1,
      },
      text: told.map(plain),
      hovertemplate: "%{text}<extra></extra>",
    });
    const lanes = most(lane) - least(lane) + 1;
    return {
      traces,
      height: Math.max(200, 90 + 22 * lanes),
      layout: {
        xaxis: generationAxis(color, [...start, ...end], { showgrid: true }),
        yaxis: axis(color, "", { visible: false, range: [least(lane) - 1, most(lane) + 1] }),
        hovermode: "closest",
      },
      stops: stopsAt(traces.length - 1, told),
    };
  }

  // All runs --------------------------------------------------------------------------------------

  function comparison({ options, color }) {
    const traces = [];
    const stops = [];
    const all = { x: [], y: [] };
    runs.forEach(({ name, rows }, number) => {
      const x = options.over === "seconds" ? elapsed(rows) : rows.generation;
      const tone = color(`run-${number % NUM_RUN_COLORS}`);
      const symbol = RUN_SYMBOLS[Math.floor(number / NUM_RUN_COLORS) % RUN_SYMBOLS.length];
      const marker = { color: tone, size: 5, symbol };
      const told = (what, values) => ({
        text: places(x).map((place) =>
          plain(`${name}\ngeneration ${rows.generation[place]}, ${what} ${shown(values[place])}`)),
        hovertemplate: "%{text}<extra></extra>",
      });
      traces.push(line(x, rows.elite_average, "", tone, {
        ...told("elite average", rows.elite_average), mode: "lines",
        line: { color: tone, width: 1.5, dash: "dot" }, ...legend("", "", number),
      }));
      traces.push(line(x, rows.best, name, tone, {
        ...told("best", rows.best), marker, ...legend(name, "line", number),
      }));
      stops.push(...stopsAt(traces.length - 1, places(x).map((place) =>
        `${name}, generation ${rows.generation[place]}: best ${shown(rows.best[place])}`)));
      all.x.push(...x);
      all.y.push(...finite([...rows.best, ...rows.elite_average]));
    });
    const [low, high] = [least(all.y), most(all.y)];
    return {
      traces,
      layout: {
        xaxis: options.over === "seconds"
          ? axis(color, "seconds of the generations so far", { rangemode: "tozero" })
          : generationAxis(color, all.x),
        yaxis: axis(color, "fitness", { ...scale(options.log, low, high), tickformat: "~g" }),
        hovermode: "closest",
      },
      stops,
    };
  }

  function elapsed(rows) {
    let total = 0;
    return rows.generation.map((_, place) => {
      for (const values of Object.values(rows.seconds)) total += values[place] ?? 0;
      return total;
    });
  }

  // Figures 1 and 2 of the paper ------------------------------------------------------------------

  function paperFigure({ run: task, kind, color }) {
    const figure = task[kind];
    const { y_range: range, y_scale: y } = figure;
    const [isLog, isShare] = [y === "log", y === "share"];
    const told = (value) => (isShare ? percent(value) : shown(value));
    const traces = [];
    const stops = [];
    for (const { label, method, variant, x, line: middle, low, high } of figure.bands) {
      const [name, dash, sign] = METHOD_LOOKS[method] || ["none", "dash", "dashed"];
      const tone = color(variant > 0 ? VARIANT_COLORS[(variant - 1) % 4] : name);
      const group = `${method} ${variant}`;
      if (low.some((value, place) => value !== high[place])) {
        // The space between two lines is filled, and a gap in one would lead astray.
        const known = places(x).filter((i) => low[i] !== null && high[i] !== null);
        const edge = {
          type: "scatter", mode: "lines", x: known.map((i) => x[i]), hoverinfo: "skip",
          line: { color: tone, width: 1, dash }, ...legend("", "", group),
        };
        const filled = { fill: "tonexty", fillcolor: `${tone}2b` };
        traces.push({ ...edge, y: known.map((i) => low[i]) });
        traces.push({ ...edge, ...filled, y: known.map((i) => high[i]) });
      }
      const texts = places(x).map((i) => {
        const isBand = low[i] !== high[i] && high[i] !== null;
        const edges = isBand ? `, from ${told(low[i])} to ${told(high[i])}` : "";
        return `${label}\n${figure.x_title.split(" (")[0]} ${x[i]}: ${told(middle[i])}${edges}`;
      });
      traces.push(line(x, middle, label, tone, {
        line: { color: tone, width: 2.5, dash },
        marker: { color: tone, size: 6, symbol: RUN_SYMBOLS[variant % RUN_SYMBOLS.length] },
        text: texts.map(plain),
        hovertemplate: "%{text}<extra></extra>",
        ...legend(label, sign, group),
      }));
      stops.push(...stopsAt(traces.length - 1, texts));
    }
    return {
      traces,
      layout: {
        xaxis: generationAxis(color, figure.bands.flatMap(({ x }) => x), {
          title: { text: plain(figure.x_title), standoff: 8, font: { size: 13 } },
        }),
        yaxis: axis(color, figure.y_title, {
          range: isLog ? range.map(Math.log10) : range,
          tickformat: isShare ? ".0%" : "~g",
          ...(isLog ? { type: "log", tickvals: figure.y_ticks } : {}),
        }),
        hovermode: "closest",
      },
      stops,
    };
  }

  // Charts and what changes them ------------------------------------------------------------------

  const KINDS = {
    comparison, fitness, children, diversity, optimizers, seconds, settings, family,
    figure1: paperFigure, figure2: paperFigure,
  };

  class Chart {
    constructor(element) {
      this.element = element;
      const drawn = KINDS[element.dataset.kind] === paperFigure ? tasks : runs;
      this.run = drawn[Number(element.dataset.run)];
      this.figure = element.closest("figure");
      this.controls = [...this.figure.querySelectorAll("[data-control]")];
      this.place = null;
      this.stops = [];
      this.hidden = new Set();
      this.legend = document.createElement("div");
      this.legend.className = "legend";
      element.before(this.legend);
      if (element.dataset.kind === "settings") this.offerSettings();
      for (const control of this.controls) {
        control.addEventListener("input", () => {
          if (control.type === "range") this.keepOrder(control);
          this.draw();
        });
        if (control.dataset.control === "log") this.offerLog(control);
        if (control.dataset.control === "individuals") {
          control.parentElement.hidden = this.run.members.uid.length === 0;
        }
      }
      element.addEventListener("keydown", (event) => this.step(event));
      element.addEventListener("blur", () => this.leave());
    }

    offerSettings() {
      const { settings: offered, generation } = this.run.steps;
      const select = this.control("setting");
      offered.forEach(({ name, values }, place) => {
        const different = [...new Set(finite(values))];
        const always = different.length === 1 ? ` (always ${settingText(different[0])})` : "";
        select.add(new Option(`${name}${always}`, String(place)));
      });
      const [first, last] = [least(generation), most(generation)];
      for (const name of ["from", "to"]) {
        const value = name === "from" ? first : last;
        Object.assign(this.control(name), { min: first, max: last, step: 1, value });
      }
      this.keepOrder();
    }

    offerLog(box) {
      const rows = this.run ? [this.run.rows] : runs.map((run) => run.rows);
      const low = least(rows.flatMap((row) => finite(row.best_ever)));
      box.checked = isWide(low, most(rows.flatMap((row) => finite(row.elite_average))));
      box.disabled = !(low > 0 && low < Infinity);
    }

    control(name) {
      return this.controls.find((control) => control.dataset.control === name);
    }

    /** Let the first generation never pass the last one. */
    keepOrder(moved) {
      const [from, to] = [this.control("from"), this.control("to")];
      if (Number(from.value) > Number(to.value)) (moved === from ? to : from).value = moved.value;
      for (const slider of [from, to]) {
        slider.parentElement.querySelector("output").textContent = slider.value;
      }
    }

    options() {
      return Object.fromEntries(this.controls.map((control) => {
        const value = control.type === "range" ? Number(control.value) : control.value;
        return [control.dataset.control, control.type === "checkbox" ? control.checked : value];
      }));
    }

    draw() {
      if (this.element.offsetParent === null) return; // of a run that is not chosen
      const color = palette();
      const { kind } = this.element.dataset;
      const made = KINDS[kind]({ run: this.run, kind, options: this.options(), color });
      if (made.height) this.element.style.height = `${made.height}px`;
      this.showLegend(made.traces);
      for (const trace of made.traces) trace.visible = !this.hidden.has(trace.meta?.group);
      this.leave();
      this.stops = made.stops.filter(({ at }) =>
        !Array.isArray(at) || made.traces[at[0].curveNumber].visible);
      Plotly.react(this.element, made.traces, layoutOf(color, made.layout), {
        displayModeBar: false,
        responsive: true,
      });
      for (const image of this.element.querySelectorAll("svg")) {
        image.setAttribute("aria-hidden", "true"); // told by caption, arrow keys and tables
      }
      const note = this.figure.querySelector(".note");
      if (note) {
        note.textContent = (made.notes || []).join(" ");
        note.hidden = note.textContent === "";
      }
    }

    /** Offer a button for each group of traces, which hides it or shows it again. */
    showLegend(traces) {
      const signed = traces.filter((trace) => trace.meta?.sign);
      const focused = this.legend.contains(document.activeElement)
        ? document.activeElement.textContent : null;
      this.legend.replaceChildren(...signed.map((trace) => {
        const { label, sign: shape, group } = trace.meta;
        const button = document.createElement("button");
        const sign = document.createElement("i");
        sign.className = shape;
        sign.style.color = trace.fillcolor || trace.line?.color || trace.marker.color;
        button.type = "button";
        button.append(sign, label);
        button.setAttribute("aria-pressed", String(!this.hidden.has(group)));
        button.addEventListener("click", () => {
          if (!this.hidden.delete(group)) this.hidden.add(group);
          this.draw();
        });
        return button;
      }));
      [...this.legend.children].find((button) => button.textContent === focused)?.focus();
    }

    step(event) {
      const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      if (event.key === "Escape") this.leave();
      if (!(event.key in moves) || this.stops.length === 0) return;
      event.preventDefault();
      const end = this.stops.length - 1;
      const start = moves[event.key] > 0 ? 0 : end;
      const next = this.place === null ? start : this.place + moves[event.key];
      this.place = Math.max(0, Math.min(end, next));
      const stop = this.stops[this.place];
      Plotly.Fx.hover(this.element, stop.at);
      document.getElementById("spoken").textContent = stop.text;
    }

    leave() {
      this.place = null;
      if (this.element.querySelector(".hoverlayer > *")) Plotly.Fx.unhover(this.element);
    }
  }

  const charts = [...document.querySelectorAll(".chart")].map((element) => new Chart(element));
  const drawAll = () => charts.forEach((chart) => chart.draw());

  const choice = document.getElementById("run");
  if (choice) {
    choice.closest(".choice").hidden = false;
    const show = () => {
      document.querySelectorAll("section.run").forEach((section, place) => {
        section.hidden = String(place) !== choice.value;
      });
      drawAll();
    };
    choice.addEventListener("input", show);
    show();
  } else {
    drawAll();
  }

  // Theme -----------------------------------------------------------------------------------------

  const button = document.getElementById("theme");
  const dark = document.getElementById("dark");
  const isDark = () => window.matchMedia(dark.media).matches;
  const follow = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    drawAll();
  };
  button.hidden = false;
  button.textContent = isDark() ? "Light theme" : "Dark theme";
  button.addEventListener("click", () => {
    dark.media = isDark() ? "not all" : "all";
    follow();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", follow);
  narrow.addEventListener("change", drawAll);
})();
