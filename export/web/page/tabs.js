// Tabs by mouse and arrow keys: https://www.w3.org/WAI/ARIA/apg/patterns/tabs/

/**
 * Show the panel of the selected tab of a list, and hide the others.
 * @param {HTMLElement} list its tabs, which name their panels in aria-controls
 */
export function enableTabs(list) {
  const tabs = /** @type {HTMLElement[]} */ (Array.from(list.children));
  const select = (/** @type {HTMLElement} */ chosen) => {
    for (const tab of tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      const panel = document.getElementById(tab.getAttribute("aria-controls") ?? "");
      if (panel) panel.hidden = tab !== chosen;
    }
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const other = tabs[(index + step + tabs.length) % tabs.length];
      other.focus();
      select(other);
    });
  }
  select(tabs[0]);
}
