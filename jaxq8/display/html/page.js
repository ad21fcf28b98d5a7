"use strict";
// Opens, sorts and filters the list of sites. Without it the page shows everything.
(() => {
  document.documentElement.classList.add("js");
  const table = document.getElementById("sites");
  if (!table) return;
  const sites = [...table.tBodies];
  const [filter, group, sort, count, all] = ["filter", "group", "sort", "count", "all"].map((id) => document.getElementById(id));
  const texts = new Map();
  const NUMBERS = ["error", "arithmetic", "bytes"];
  let key = "order";
  let descending = false;

  const opener = (site) => site.querySelector("button.open");
  const isOpen = (site) => !site.querySelector("tr.details").hidden;

  function open(site, yes) {
    site.querySelector("tr.details").hidden = !yes;
    opener(site).setAttribute("aria-expanded", yes);
    site.classList.toggle("opened", yes);
  }

  function compared(a, b) {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    const numbers = key === "order" || NUMBERS.includes(key);
    const result = numbers ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return (descending ? -result : result) || a.dataset.order - b.dataset.order;
  }

  function sortBy(name, down) {
    key = name;
    descending = down;
    for (const site of [...sites].sort(compared)) table.append(site);
    sort.value = key;
    for (const button of table.tHead.querySelectorAll("button")) {
      const state = button.dataset.sort !== key ? "none" : descending ? "descending" : "ascending";
      button.closest("th").setAttribute("aria-sort", state);
    }
  }

  // The first click on a column of figures puts the largest first, on any other the smallest; the next click turns it round.
  const first = (name) => NUMBERS.includes(name);

  function matches(site) {
    const [kind, value] = group.value.split(":");
    if (kind && site.dataset[kind] !== value) return false;
    if (!texts.has(site)) texts.set(site, site.textContent.toLowerCase());
    return filter.value.toLowerCase().split(/\s+/).every((word) => texts.get(site).includes(word));
  }

  function choose() {
    let shown = 0;
    for (const site of sites) {
      site.hidden = !matches(site);
      shown += !site.hidden;
    }
    const plural = sites.length === 1 ? "" : "s";
    count.textContent = shown === sites.length ? `${shown} site${plural}` : `${shown} of ${sites.length} sites`;
  }

  function follow() {
    const site = sites.find((each) => `#${each.id}` === location.hash);
    if (!site) return;
    if (site.hidden) {
      filter.value = group.value = "";
      choose();
    }
    open(site, true);
    site.scrollIntoView({ block: "center" });
    opener(site).focus({ preventScroll: true });
  }

  sites.forEach((site) => open(site, false));
  table.addEventListener("click", (event) => {
    const head = event.target.closest("th button");
    if (head) return sortBy(head.dataset.sort, head.dataset.sort === key ? !descending : first(head.dataset.sort));
    const row = event.target.closest("tr.site");
    if (!row || String(getSelection())) return undefined; // who marks text does not want to open the row
    return open(row.parentElement, !isOpen(row.parentElement));
  });
  sort.addEventListener("change", () => sortBy(sort.value, first(sort.value)));
  document.getElementById("reverse").addEventListener("click", () => sortBy(key, !descending));
  filter.addEventListener("input", choose);
  group.addEventListener("change", choose);
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  all.addEventListener("click", () => {
    const yes = all.getAttribute("aria-expanded") === "false";
    sites.forEach((site) => open(site, yes));
    all.setAttribute("aria-expanded", yes);
    all.textContent = yes ? "Close all" : "Open all";
  });
  addEventListener("hashchange", follow);
  filter.value = group.value = ""; // browsers keep what was typed before the page was loaded again
  sortBy("order", false);
  follow();
})();
