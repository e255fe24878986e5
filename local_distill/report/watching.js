// A page that is watched: every few seconds it asks its server for the parts that have changed, and puts them in place.

const watching = (() => {
  const EVERY = 2000;  // milliseconds
  const PATIENCE = 15000;
  const status = document.getElementById("watching");
  const versions = JSON.parse(status.dataset.versions);
  let wait = EVERY, timer = null, asking = false;

  const ago = seconds => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`);

  function say(text, state) {
    const place = status.querySelector("[role=status]");
    if (place.textContent !== text) place.textContent = text;
    status.dataset.state = state;
  }

  // What stands at the top of the window stays there, however much longer the page has become above it.
  function inPlace(change) {
    const anchor = [...document.querySelectorAll("main > *, #heat > *, .chart, tr")].find(each => each.getBoundingClientRect().bottom > 0);
    const before = anchor?.getBoundingClientRect().top;
    change();
    if (anchor?.isConnected && scrollY > 0) scrollBy({ top: anchor.getBoundingClientRect().top - before, behavior: "instant" });
  }

  function write(name, markup) {
    const part = document.querySelector(`[data-part="${name}"]`);
    const open = [...part.querySelectorAll("details")].map(each => each.open);
    part.innerHTML = markup;
    part.querySelectorAll("details").forEach((each, place) => { each.open = open[place] ?? false; });
  }

  function take({ markup, json }) {
    Object.assign(data, json);
    // The section of the tokens is written once, when there are any; the script keeps what is in it.
    const { tokens, ...others } = markup;
    Object.entries(others).forEach(([name, text]) => write(name, text));
    if (tokens !== undefined) write("tokens", tokens);
    if (json.curves) charts.show();
    if (json.evaluations) heatMap.renew();
  }

  async function ask() {
    [timer, asking] = [null, true];
    try {
      const answer = await fetch(`changes?${new URLSearchParams(versions)}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const changes = await answer.json();
      if (Object.keys(changes.versions).length) {
        Object.assign(versions, changes.versions);
        inPlace(() => take(changes));
      }
      wait = EVERY;
      const written = changes.age === null ? "nothing written yet" : `last line written ${ago(changes.age)} ago`;
      say(`${changes.goes_on ? "watching" : "nobody is at work in the folder"}; ${written}`, changes.goes_on ? "on" : "off");
    } catch {
      wait = Math.min(2 * wait, PATIENCE);
      say("local-distill watch has ended or cannot be reached; this is what it told last", "lost");
    }
    asking = false;
    if (!document.hidden) timer = setTimeout(ask, wait);
  }

  function start() {
    document.documentElement.style.overflowAnchor = "none";  // this script does it, in browsers that do not as well
    document.addEventListener("visibilitychange", () => { if (!document.hidden && timer === null && !asking) ask(); });
    timer = setTimeout(ask, EVERY);
  }

  return { start };
})();

watching.start();
