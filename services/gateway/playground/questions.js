// Questions with labels: what is it, which pixel is what, and where does the model see it.

import {tiles} from "./closely.js";
import {isWaiting} from "./job.js";
import {rename, staying} from "./naming.js";
import {light} from "./objects.js";
import {$, say, some} from "./page.js";
import {heat} from "./paint.js";
import {legendRow, refill, scoreRow} from "./rows.js";
import {labels} from "./settings.js";
import {area, maskOf, needsObject, now, onChange, photo, push, question, render, selected} from "./work.js";

const SHOWN = 10;  // labels that are always shown; others are from 1 % on

export const actions = {
  async classify(areas) {
    const about = selected(), answer = await question("/classify", {labels: labels(), areas});
    if (!answer) return;
    const scores = Array.isArray(answer.results[0]?.scores) ? answer.results[0].scores : answer.results;
    const likely = scores.filter(({score}, at) => at < SHOWN || score >= 0.01), use = areas && (label => rename([about], label));
    $("answers").replaceChildren(...likely.map(row => scoreRow(row, use)));
    render();
    say(`${areas ? "The object" : "The photograph"} is most likely “${scores[0].label}”.`);
  },
  "classify-object"() { needsObject(); return actions.classify([area()]); },
  async semantic() {
    const names = labels(), closely = tiles(), refine = $("refine").checked && !closely.tiles;
    const fields = {labels: names, refine, background: $("background").checked, ...closely};
    const answer = await question("/semantic", fields);
    if (!answer) return;
    const objects = answer.regions.map(({mask, label, score}, colour) => ({...maskOf(mask), label, score, colour, sought: "/semantic"}));
    push({objects: [...staying("/semantic"), ...objects], heat: null});
    const without = names.filter(name => !objects.some(({label}) => label === name)).map(name => `“${name}”`);
    say(`${objects.length} of ${names.length} labels have pixels.${without.length ? ` Without any: ${some(without)}.` : ""}`);
  },
  async explain() {
    const label = $("explained").value, answer = await question("/explain", {label, others: labels().filter(other => other !== label)});
    if (!answer) return;
    const asked = photo, picture = await heat(answer.heat_png);
    if (asked !== photo) return;
    push({...now(), heat: picture});
    say(answer.high < 0.01 ? `The model sees “${label}” nowhere.` : `Where it is bright, the model sees “${label}” (${answer.low.toFixed(2)} to ${answer.high.toFixed(2)}).`);
  },
  /** Switch off what is seen of the two: the heat map, or else the map below it. */
  uncover() {
    if (isWaiting()) return;
    const state = now(), objects = state.heat ? state.objects : state.objects.filter(({colour}) => colour === undefined);
    push({...state, objects, selected: objects.indexOf(selected()), heat: null});
  },
};

onChange(({objects, selected: chosen, heat}) => {
  const regions = objects.map((object, index) => ({object, index})).filter(({object}) => object.colour !== undefined);
  $("uncover").hidden = !heat && !regions.length;
  $("uncover").lastChild.textContent = heat ? "Heat map off" : "Map off";
  refill($("legend"), ...regions.map(({object, index}) => legendRow(object, index === chosen, {
    pick: () => isWaiting() || push({...now(), selected: index === chosen ? -1 : index}), light,
  })));
});
