// Tabs, labels, key and theme: what does not depend on the photograph.

import {apiKey} from "./api.js";
import {$, say} from "./page.js";

export const labels = () => $("labels").value.split("\n").map(line => line.trim()).filter(Boolean);
export const words = id => $(id).value.split(",").map(word => word.trim()).filter(Boolean);

const tabs = [...document.querySelectorAll("[role=tab]")];
function turnTo(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  $("wanted").hidden = !["tab-classify", "tab-map", "tab-everything"].includes(tab.id);
  $("explained").replaceChildren(...labels().map(label => new Option(label)));
}
tabs.forEach((tab, index) => {
  tab.onclick = () => turnTo(tab);
  tab.onkeydown = event => {
    const way = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!way) return;
    const next = tabs[(index + way + tabs.length) % tabs.length];
    turnTo(next);
    next.focus();
  };
});
$("labels").oninput = () => $("explained").replaceChildren(...labels().map(label => new Option(label)));

$("key").value = apiKey.get();
$("key").onchange = () => { apiKey.set($("key").value.trim()); say("The API key is kept in this browser."); };
$("keys").onsubmit = event => { event.preventDefault(); $("key").blur(); };
$("theme").value = localStorage.getItem("samclip-theme") ?? "";
$("theme").onchange = () => { localStorage.setItem("samclip-theme", $("theme").value); theme(); };
function theme() { document.documentElement.dataset.theme = $("theme").value; }
theme();
