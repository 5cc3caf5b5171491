// Light or dark: as the system says, until the button says otherwise.

const theme = {
  now: () => document.documentElement.dataset.theme,
  set(name) {
    document.documentElement.dataset.theme = name;
    const other = name === "dark" ? "light" : "dark";
    const button = $("#theme");
    button.textContent = name === "dark" ? "☀ light" : "☾ dark";
    button.setAttribute("aria-label", `Switch to ${other} colours`);
    dispatchEvent(new Event("themechange"));
  },
  start() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let chosen = null;
    try { chosen = localStorage.getItem("sapo_vl.theme"); } catch { /* a file may have no storage */ }
    this.set(chosen ?? (dark.matches ? "dark" : "light"));
    dark.addEventListener("change", () => { if (!chosen) this.set(dark.matches ? "dark" : "light"); });
    $("#theme").addEventListener("click", () => {
      chosen = this.now() === "dark" ? "light" : "dark";
      try { localStorage.setItem("sapo_vl.theme", chosen); } catch { /* it holds until the page is closed */ }
      this.set(chosen);
    });
  },
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
