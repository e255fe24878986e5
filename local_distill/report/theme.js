// Light and dark. The styles follow the attribute data-theme or else the system; what is painted is painted again.

const theme = (() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const probe = document.body.appendChild(document.createElement("i"));
  const listeners = [];
  probe.hidden = true;

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const changed = () => listeners.forEach(listener => listener());
  const set = name => {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    changed();
  };

  document.getElementById("theme").addEventListener("click", () => set(isDark() ? "light" : "dark"));
  system.addEventListener("change", changed);
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; set("light"); });
  addEventListener("afterprint", () => set(before));

  return {
    // The colour that a custom property has now, as a canvas wants it.
    paint(property) {
      probe.style.color = `var(--${property})`;
      return getComputedStyle(probe).color;
    },
    onChange: listener => listeners.push(listener),
  };
})();
