// Panels, labels, key and theme: what does not depend on the photograph.

import {apiKey, service} from "./api.js";
import {$, say} from "./page.js";
import {remembered} from "./remembered.js";

let everyday = [];
service.then(({names}) => { everyday = names; explainable(); }, () => {});
const typed = () => $("labels").value.split("\n").map(line => line.trim()).filter(Boolean);
/** The labels that were typed, or else everyday words. */
export const labels = () => typed().length ? typed() : everyday;
/** Fill the fields in which nobody has typed with words that suit the photograph. */
export function suggest({labels = "", phrase = ""}) {
  $("labels").defaultValue = labels;
  $("phrase").defaultValue = phrase;
  explainable();
}

export const words = id => $(id).value.split(",").map(word => word.trim()).filter(Boolean);

const tabs = [...document.querySelectorAll("[role=tab]")];
/** Show the panel of a tab; without one, no panel. */
export function turnTo(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === (tab ?? tabs[0]) ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  $("panels").hidden = !tab;
  labelsWanted();
}
function labelsWanted() {
  const tab = tabs.find(tab => tab.getAttribute("aria-selected") === "true")?.id;
  $("wanted").hidden = !(["tab-classify", "tab-map"].includes(tab) || (tab === "tab-objects" && $("names").value === "labels"));
  explainable();
}
$("names").onchange = labelsWanted;
tabs.forEach((tab, index) => {
  tab.onclick = () => turnTo(tab.getAttribute("aria-selected") === "true" ? null : tab);
  tab.onkeydown = event => {
    const way = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!way) return;
    event.preventDefault();
    const others = [...tabs.slice(index + 1), ...tabs.slice(0, index)].filter(other => !other.ariaDisabled && !other.hidden);
    const next = others.at(way > 0 ? 0 : -1);
    next.click();
    next.focus();
  };
});
turnTo(null);
$("labels").oninput = explainable;
function explainable() { $("explained").replaceChildren(...labels().map(label => new Option(label))); }

$("key").value = apiKey.get();
$("key").onchange = () => { say(apiKey.set($("key").value.trim()) ? "The API key is kept in this browser." : "This browser forbids pages to keep anything: the API key lasts until you close the page."); };
$("keys").onsubmit = event => { event.preventDefault(); $("key").blur(); };
const chosen = remembered("samclip-theme");
$("theme").value = chosen.get();
$("theme").onchange = () => { chosen.set($("theme").value); theme(); };
function theme() { document.documentElement.dataset.theme = $("theme").value; }
theme();
