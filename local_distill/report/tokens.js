// The token heat map, what is known of the token that is pointed at, and the worst tokens.

const heatMap = (() => {
  const WORST = 20;
  const CONTEXT = 8;  // tokens on each side
  const get = id => document.getElementById(id);
  const words = number => data.evaluations.texts[number];
  const percent = nats => (nats === null ? "–" : `${(100 * Math.exp(nats)).toPrecision(3)} %`);
  const nats = value => (value === null ? "–" : value.toFixed(3).replace("-", "−"));
  let run, evaluations, limit, chosen;

  // What colours a token, nats.
  const VALUES = {
    reverse_kl: (completion, i) => completion.reverse_kl[i],
    difference: (completion, i) => (completion.student[i] === null || completion.teacher[i] === null
      ? null : completion.student[i] - completion.teacher[i]),
  };
  const value = (completion, i) => VALUES[get("tokens-colour").value](completion, i);
  const step = () => evaluations[get("tokens-step").value];
  const all = among => among.flatMap(evaluation => evaluation.completions.flatMap((completion, place) =>
    completion.text.map((_, i) => ({ evaluation, completion, place, i }))));

  // The value at which the colour is full: most of the run's tokens are below it, a few outliers are not.
  function fullColour() {
    const sizes = all(evaluations).map(({ completion, i }) => Math.abs(value(completion, i) ?? 0)).sort((a, b) => a - b);
    return Math.max(1, Math.ceil(sizes[Math.floor(0.92 * (sizes.length - 1))] ?? 1));
  }

  // The text of a token in the flow: a line's end is seen, and so is a token that adds nothing yet.
  const inFlow = text => (text === "" ? "▫" : text.replaceAll("\n", "↵\n"));
  // The same where spaces count.
  const alone = text => (text === "" ? "(no text yet)" : text.replaceAll("\n", "↵").replaceAll(" ", "␣").replaceAll("\t", "⇥"));

  function tokenOf(completion, place, i) {
    const token = element("span", { className: "token", textContent: inFlow(words(completion.text[i])), tabIndex: -1 });
    token.setAttribute("role", "button");
    token.dataset.place = place;
    token.dataset.index = i;
    paint(token, value(completion, i));
    return token;
  }

  function paint(token, shown) {
    token.classList.remove("more", "less", "unknown");
    token.classList.add(shown === null ? "unknown" : shown > 0 ? "more" : "less");
    token.style.setProperty("--share", `${Math.min(1, Math.abs(shown ?? 0) / limit) * 100}%`);
  }

  const when = evaluation => (evaluation.step ? `after step ${evaluation.step}` : "before training");

  function figureOf(evaluation, place, side) {
    const completion = evaluation.completions[place];
    const ended = { stop: "ended by itself", length: "cut off" }[completion.finish] ?? "";
    const measured = `reverse KL ${shortNumber(completion.mean)} nats per token, ${completion.text.length} tokens, ${ended}`;
    const text = element("div", { className: "model-text flow" }, ...completion.text.map((_, i) => tokenOf(completion, place, i)));
    if (text.firstChild) text.firstChild.tabIndex = 0;
    return element("figure", { className: side }, element("figcaption", {}, element("b", { textContent: when(evaluation) }),
      " ", element("span", { className: "quiet", textContent: measured })), text);
  }

  // A prompt with what the student made of it before training, and at the step that is shown.
  function cardOf(completion, place) {
    const both = evaluations[0] !== step() && evaluations[0].completions[place];
    return element("article", { className: "prompt" },
      element("h3", { className: "model-text", textContent: words(completion.prompt) }),
      element("div", { className: "side-by-side" }, ...(both ? [figureOf(evaluations[0], place, "before")] : []), figureOf(step(), place, "after")));
  }

  const evaluationOf = token => (token.closest(".before") ? evaluations[0] : step());
  const completionOf = token => evaluationOf(token).completions[token.dataset.place];

  function showStep() {
    get("tokens-step-shown").textContent = step().step;
    get("heat").replaceChildren(...step().completions.map(cardOf));
    hide();
    if (get("worst-here").checked) showWorst();
  }

  function showScale() {
    limit = fullColour();
    const signed = all(evaluations).some(({ completion, i }) => (value(completion, i) ?? 0) < 0);
    get("scale-low").textContent = signed ? `−${limit} or less: the teacher is surer of the token` : "0 nats: they agree";
    get("scale-high").textContent = signed ? `${limit} nats or more: the student is surer` : `${limit} nat${limit === 1 ? "" : "s"} or more`;
    document.querySelector(".ramp").classList.toggle("signed", signed);
  }

  function showWorst() {
    const among = all(get("worst-here").checked ? [step()] : evaluations).filter(({ completion, i }) => completion.reverse_kl[i] !== null);
    among.sort((a, b) => b.completion.reverse_kl[b.i] - a.completion.reverse_kl[a.i]);
    get("worst").tBodies[0].replaceChildren(...among.slice(0, WORST).map(worstRow));
  }

  function worstRow(found) {
    const { completion, evaluation, i } = found;
    const around = (from, to) => completion.text.slice(Math.max(0, from), to).map(words).map(inFlow).join("").replaceAll("\n", " ");
    const button = element("button", { type: "button", className: "model-text" },
      around(i - CONTEXT, i).trimStart(), element("mark", { textContent: inFlow(words(completion.text[i])).trimEnd() || "␣" }), around(i + 1, i + 1 + CONTEXT));
    button.addEventListener("click", () => jump(found));
    const [first, likeliest] = completion.top[i];
    const choice = first === undefined ? "–" : `${alone(words(first))}  ${percent(likeliest)}`;
    const cells = [["nats", nats(completion.reverse_kl[i])], ["step", evaluation.step], ["", button], ["student", percent(completion.student[i])],
      ["teacher", percent(completion.teacher[i])], ["teacher's first choice", choice]];
    return element("tr", {}, ...cells.map(([label, cell]) => {
      const made = element("td", {}, cell);
      if (label) made.dataset.label = label;
      return made;
    }));
  }

  function jump({ evaluation, place, i }) {
    get("tokens-step").value = evaluations.indexOf(evaluation);
    showStep();
    const token = get("heat").querySelector(`.after [data-place="${place}"][data-index="${i}"]`);
    token.scrollIntoView({ block: "center" });
    token.focus({ preventScroll: true });
  }

  function inspect(token) {
    const completion = completionOf(token), i = +token.dataset.index;
    const row = (name, ...cells) => element("tr", {}, element("th", { textContent: name }), ...cells.map(cell => element("td", { textContent: cell })));
    const chances = element("table", {}, element("thead", {}, row("", "probability", "log-prob, nats")), element("tbody", {},
      row("student", percent(completion.student[i]), nats(completion.student[i])),
      row("teacher", percent(completion.teacher[i]), nats(completion.teacher[i]))));
    get("inspector").replaceChildren(
      element("p", { className: "picked model-text", textContent: alone(words(completion.text[i])) }),
      element("p", {}, "reverse KL ", element("b", { textContent: nats(completion.reverse_kl[i]) }), " nats"), chances, choicesOf(completion, i));
    chosen?.classList.remove("chosen");
    chosen = token;
    token.classList.add("chosen");
    get("inspector").hidden = false;
    placeBeside(token);
  }

  // The teacher's likeliest tokens, each with a bar as long as its probability.
  function choicesOf(completion, i) {
    const top = completion.top[i], rows = [];
    for (let at = 0; at < top.length; at += 2) {
      const bar = element("i", { className: "bar" });
      bar.style.width = `${100 * Math.exp(top[at + 1] ?? -Infinity)}%`;
      rows.push(element("li", { className: top[at] === completion.text[i] ? "same" : "" },
        element("span", { className: "model-text", textContent: alone(words(top[at])) }),
        element("span", { className: "chance", textContent: percent(top[at + 1]) }), bar));
    }
    return rows.length
      ? element("div", {}, element("p", { className: "quiet", textContent: "The teacher's likeliest" }), element("ol", {}, ...rows))
      : element("p", { className: "quiet", textContent: "The teacher told no other choices." });
  }

  // Under the token, inside the section; a narrow screen's styles put it at the bottom instead.
  function placeBeside(token) {
    const box = get("inspector"), section = get("tokens").getBoundingClientRect();
    const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const hidden = at.bottom + 8 - box.getBoundingClientRect().top;
    if (getComputedStyle(box).position === "fixed") {
      if (hidden > 0) scrollBy(0, hidden);
      return;
    }
    const last = section.width - box.offsetWidth;
    box.style.left = `${Math.max(0, Math.min(at.left - section.left, last))}px`;
    const below = innerHeight - at.bottom > box.offsetHeight + 16 || at.top < box.offsetHeight + 16;
    box.style.top = `${(below ? at.bottom + 8 : at.top - box.offsetHeight - 8) - section.top}px`;
  }

  function hide() {
    chosen?.classList.remove("chosen");
    chosen = null;
    get("inspector").hidden = true;
  }

  function walk(event) {
    const token = event.target.closest(".token");
    if (!token) return;
    const to = { ArrowRight: token.nextElementSibling, ArrowLeft: token.previousElementSibling,
      Home: token.parentElement.firstElementChild, End: token.parentElement.lastElementChild }[event.key];
    if (event.key === "Escape") hide();
    if (!to) return;
    event.preventDefault();
    to.focus();
  }

  function onToken(event) {
    const token = event.target.closest?.(".token");
    if (token) inspect(token);
  }

  function onFocus(event) {
    const token = event.target.closest(".token");
    if (!token) return;
    token.parentElement.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    token.tabIndex = 0;
    inspect(token);
  }

  const hasTokens = () => data.curves.runs.map((_, place) => place).filter(place => data.evaluations.runs[place].length);

  function showRun() {
    run = +get("tokens-run").value;
    evaluations = data.evaluations.runs[run];
    get("tokens-step").max = evaluations.length - 1;
    get("tokens-step").value = evaluations.length - 1;
    offerColours();
    recolour();
    if (!get("worst-here").checked) showWorst();
  }

  // Where the two are one and the same number, there is nothing to choose.
  function offerColours() {
    const sampled = all(evaluations).every(({ completion, i }) => Math.abs((VALUES.difference(completion, i) ?? 0) - (completion.reverse_kl[i] ?? 0)) < 0.001);
    get("tokens-colour-label").hidden = sampled;
    if (sampled) get("tokens-colour").value = "reverse_kl";
  }

  function recolour() {
    showScale();
    showStep();
  }

  function offerRuns() {
    const options = hasTokens().map(place => element("option", { value: place, textContent: data.curves.runs[place].name }));
    const chosenRun = get("tokens-run").value;
    get("tokens-run").replaceChildren(...options);
    if (chosenRun) get("tokens-run").value = chosenRun;
    get("tokens-run-label").hidden = options.length < 2;
  }

  // More evaluations than before, of a page that is watched. Whoever looks at the newest goes on to the next newest;
  // whoever looks at an older one, or at a token, keeps it in place.
  function renew() {
    if (!get("heat")) return;
    if (!get("tokens-run").options.length) return begin();
    const shown = step().step, newest = shown === evaluations.at(-1).step && !chosen;
    offerRuns();
    const others = data.evaluations.runs[run];
    const kept = others.findIndex(each => each.step === shown);
    if (newest || kept < 0) {
      if (others.length !== evaluations.length || kept < 0) showRun();
      return;
    }
    evaluations = others;
    get("tokens-step").max = evaluations.length - 1;
    get("tokens-step").value = kept;
    offerColours();
    showScale();
    get("heat").querySelectorAll(".token").forEach(token => paint(token, value(completionOf(token), +token.dataset.index)));
    if (!get("worst-here").checked) showWorst();
  }

  // The section is there, for the first time or written out anew.
  function begin() {
    if (!get("heat")) return;
    offerRuns();
    get("tokens-run").addEventListener("change", showRun);
    get("tokens-step").addEventListener("input", showStep);
    get("tokens-colour").addEventListener("change", recolour);
    get("worst-here").addEventListener("change", showWorst);
    get("heat").addEventListener("pointerover", onToken);
    get("heat").addEventListener("click", onToken);
    get("heat").addEventListener("focusin", onFocus);
    get("heat").addEventListener("keydown", walk);
    get("heat").addEventListener("pointerleave", event => { if (event.pointerType === "mouse" && !chosen?.matches(":focus")) hide(); });
    showRun();
  }

  function start() {
    addEventListener("resize", () => { if (chosen) hide(); });
    begin();
  }

  return { start, renew };
})();
