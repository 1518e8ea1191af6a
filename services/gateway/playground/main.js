// The page: what the user does becomes a question to the service, and its answer becomes objects.

import {ask, post, stream} from "./api.js";
import {onPhotograph} from "./choose.js";
import {History} from "./history.js";
import {decode} from "./masks.js";
import {$, abort, busy, fail, pressed, say, showModel, working} from "./page.js";
import {heat, paint} from "./paint.js";
import {encoded, open, thumbnail} from "./photo.js";
import {choiceRow, hitRow, objectRow, scoreRow, share} from "./rows.js";
import {labels, suggest, words} from "./settings.js";
import * as snippets from "./snippets.js";
import {Stage} from "./stage.js";
import {take} from "./take.js";

const NOTHING = {objects: [], selected: -1, heat: null};
let photo = null, history = new History(NOTHING), draft = null, last = null, top = null, lit = null, pointed = null;
const service = {origin: location.origin, grpc: "", metadata: 0};

// ---------------------------------------------------------------- questions

/** Keep a request for "Copy as", without what was not given. */
function remember(path, fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== undefined && value !== "");
  last = {path, fields: Object.fromEntries(given), name: photo.name};
}

async function question(path, fields) {
  needsPhoto();
  remember(path, fields);
  const asked = photo, answer = await busy(signal => ask(asked, path, fields, {signal}));
  showModel(answer?.model);
  return asked === photo ? answer : null;
}

// ---------------------------------------------------------------- photographs

let newest = null;  // what was chosen last: another may take longer to open
async function show(file, suited = {}) {
  if (!file) return;
  abort();
  newest = file;
  const at = pressed;
  try {
    const opened = await open(await file);
    if (newest !== file) return;
    abort();  // what was asked while it opened is about the former photograph
    photo = opened;
  } catch (error) { fail(error, at); return; }
  suggest(suited);
  history = new History(NOTHING);
  draft = last = null;
  $("answers").replaceChildren();
  $("start").hidden = true;
  $("work").hidden = false;
  stage.show(photo);
  render();
  say(`${photo.name}, ${photo.width} × ${photo.height}. Click an object. ${suited.note ?? ""}`);
}

// ---------------------------------------------------------------- segment by clicks and boxes

const maskOf = mask => ({mask: decode(mask.rle), label: mask.label, quality: mask.predicted_iou});
const now = () => draft ?? history.state;
const selected = () => now().objects[now().selected];

async function prompt(change) {
  const before = now(), object = selected();
  const own = object?.prompt ? before.selected : before.objects.length;
  const prompt = change(object?.prompt ?? {points: [], box: null});
  const objects = before.objects.toSpliced(own, 1, {...before.objects[own], prompt});
  const mine = draft = {objects, selected: own, heat: null};
  render();
  const {points, box} = prompt, multimask = points.length === 1 && !box;
  const answer = await question("/segment", {prompts: [{points, ...(box && {box})}], multimask});
  if (!answer) return giveUp(mine);
  const candidates = answer.results[0].masks.map(maskOf);
  objects[own] = {...candidates[0], prompt, candidates, chosen: 0};
  draft = null;
  history.push({objects, selected: own, heat: null});
  render();
  say(`Mask of ${share(objects[own])}, expected overlap ${(100 * objects[own].quality).toFixed(0)} %, ${answer.ms} ms.`);
}

/** Forget a draft, unless another one has taken its place. */
function giveUp(mine) { if (draft === mine) { draft = null; render(); } }

function choose(index) {
  const state = history.state, object = selected();
  if (draft || !object?.candidates?.[index]) return;
  const objects = [...state.objects];
  objects[state.selected] = {...object, ...object.candidates[index], chosen: index};
  history.push({...state, objects});
  render();
}

const stage = new Stage($("stage"), {
  point(x, y, negative) { prompt(({points, box}) => ({points: [...points, {x, y, ...(negative && {negative})}], box})); },
  box(box) { prompt(() => ({points: [], box})); },
  hover(x, y) { pointed = {x, y}; $("preview").checked ? preview(x, y) : light(underPointer()); },
  leave() { pointed = null; ghost = waiting = null; light(); photo && draw(); },
});

function underPointer() {
  const {x, y} = pointed, {width, height} = photo.copy;
  if (!top || x < 0 || y < 0 || x >= photo.width || y >= photo.height) return null;
  return now().objects[top[Math.floor(y / photo.height * height) * width + Math.floor(x / photo.width * width)]] ?? null;
}

// A preview is bulk work, at most one at a time; it stops by itself where the service is busy.
let ghost = null, waiting = null, asking = false;
async function preview(x, y) {
  waiting = {x, y};
  if (asking || working() || selected()?.prompt) return;
  asking = true;
  while (waiting && $("preview").checked && !working()) {
    const point = waiting, asked = photo, start = performance.now();
    waiting = null;
    try {
      const answer = await ask(photo, "/segment", {prompts: [{points: [point]}]}, {bulk: true});
      if (asked === photo && !working() && pointed) ghost = paint([maskOf(answer.results[0].masks[0])], photo.copy.width, photo.copy.height, 0.35).picture;
      if (performance.now() - start > 3000) throw Object.assign(new Error("The preview is off: the service is busy."), {status: 429});
      draw();
    } catch (error) {
      $("preview").checked = false;
      say("The preview is off: the service is busy, or does not answer.");
    }
    await new Promise(done => setTimeout(done, 60));
  }
  asking = false;
}

// ---------------------------------------------------------------- the other questions

const area = () => { const {height, width, counts} = selected().mask; return {rle: {height, width, counts}}; };
const needsPhoto = () => { if (!photo) throw new Error("Choose a photograph first."); };
const needsObject = () => { if (!selected()?.mask) throw new Error("Select an object first: click one, or a row of the list."); };

function replaceBy(objects, text) {
  history.push({objects, selected: -1, heat: null});
  render();
  say(text);
}

const actions = {
  async find(prompts) {
    const not = words("unwanted"), least = $("least").dataset.touched ? Number($("least").value) : undefined;
    prompts ??= words("phrase").map(text => ({text, ...(not.length && {not_texts: not})}));
    const answer = await question("/segment", {prompts, min_score: least});
    if (!answer) return;
    const objects = answer.results.flatMap(result => result.masks.map(mask => ({...maskOf(mask), score: mask.label_score})));
    const missing = prompts.filter(({text}, index) => text && !answer.results[index].masks.length).map(({text}) => `“${text}”`);
    replaceBy(objects, `${objects.length} found in ${answer.ms} ms.${missing.length ? ` Not found: ${missing.join(", ")}.` : ""}`);
  },
  alike() { needsObject(); return actions.find([{examples: [{image: {key: photo.key}, mask: area().rle}]}]); },
  async classify(areas) {
    const answer = await question("/classify", {labels: labels(), areas});
    if (!answer) return;
    const scores = Array.isArray(answer.results[0]?.scores) ? answer.results[0].scores : answer.results;
    $("answers").replaceChildren(...scores.map(scoreRow));
    render();
    say(`${areas ? "The object" : "The photograph"} is most likely “${scores[0].label}”, ${answer.ms} ms.`);
  },
  "classify-object"() { needsObject(); return actions.classify([area()]); },
  async semantic() {
    const names = labels(), fields = {labels: names, refine: $("refine").checked, background: $("background").checked};
    const answer = await question("/semantic", fields);
    if (!answer) return;
    const objects = answer.regions.map(({mask, label, score}) => ({...maskOf(mask), label, score, colour: names.indexOf(label)}));
    replaceBy(objects, `${objects.length} of ${names.length} labels have pixels, ${answer.ms} ms.`);
  },
  async explain() {
    const label = $("explained").value, answer = await question("/explain", {label, others: labels().filter(other => other !== label)});
    if (!answer) return;
    history.push({...history.state, heat: await heat(answer.heat_png)});
    render();
    say(`Where the model sees “${label}”: ${answer.low.toFixed(2)} to ${answer.high.toFixed(2)}, ${answer.ms} ms.`);
  },
  async everything() {
    needsPhoto();
    const names = $("names").value, found = new Map(), asked = photo;
    const fields = names === "labels" ? {labels: labels()} : {vocabulary: names};
    remember("/everything", fields);
    const objects = () => [...found.values()].sort((one, other) => other.area - one.area);
    let mine = draft;
    const answer = await busy(async signal => {
      for await (const {found: more, withdrawn, progress, model} of stream(asked, "/everything", fields, {signal})) {
        showModel(model);
        for (const id of withdrawn) found.delete(id);
        for (const {id, mask} of more) found.set(id, {...maskOf(mask), area: Number(mask.area), score: mask.label ? mask.label_score : undefined});
        $("progress").value = progress;
        if (more.length || withdrawn.length) { mine = draft = {...NOTHING, objects: objects()}; render(); }
      }
    });
    if (!answer) return giveUp(mine);
    draft = null;
    replaceBy(objects(), `${found.size} objects in ${(answer.ms / 1000).toFixed(1)} s.`);
  },
  async index() {
    needsPhoto();
    const {name, key, file} = photo, metadata = {name}, room = service.metadata - new Blob(["name", name, "thumbnail"]).size;
    const small = thumbnail(photo, 112, room), collection = $("collection").value;
    if (small) metadata.thumbnail = small;
    const send = image => busy(signal => post("/index", {collection, items: [{id: name, image, metadata}], objects: $("by-objects").checked}, {signal}));
    let answer = await send(key ? {key} : await encoded(file));
    if (key && answer?.errors.length) answer = await send(await encoded(file)); // the key is forgotten, or of another task
    if (answer?.errors.length) throw new Error(answer.errors[0].message);
    if (answer) say(`${name} ${answer.replaced ? "replaced the photograph of that name" : "was added"}, ${answer.ms} ms.`);
  },
  search() { return search({text: $("query").value}); },
  similar() { return searchByPhoto({}); },
  "similar-object"() { needsObject(); return searchByPhoto({area: area()}); },
  next() { history.push({...history.state, selected: -1}); render(); say("Click the next object."); },
  clear() { abort(); draft = null; history.push(NOTHING); render(); say("Cleared."); },
  undo() { step("undo"); },
  redo() { step("redo"); },
  cancel() { abort(); draft = null; render(); say("Cancelled."); },
  fit() { stage.fit(); },
  larger() { stage.zoom(1.5); },
  smaller() { stage.zoom(1 / 1.5); },
  "default-least"() { delete $("least").dataset.touched; $("least-shown").textContent = "default"; },
};

function step(way) {
  abort();
  if (draft && way === "undo") draft = null; else { draft = null; history[way](); }
  render();
  say(way === "undo" ? "Undone." : "Done again.");
}

const searchByPhoto = async fields => hits(await question("/search", {...asked(), with_text: $("query").value, ...fields}));
const search = async fields => hits(await busy(signal => post("/search", {...asked(), ...fields}, {signal})));
const asked = () => ({collection: $("collection").value, top_k: 12, objects: $("by-objects").checked});

function hits(answer) {
  if (!answer) return;
  const more = id => search({id, with_text: $("query").value});
  $("hits").replaceChildren(...answer.hits.map(hit => hitRow(hit, more)));
  say(`${answer.hits.length} photographs found in ${answer.ms} ms.`);
}

async function run(action, ...given) {
  const at = pressed;
  try { await action(...given); } catch (error) { fail(error, at); }
}
for (const [name, action] of Object.entries(actions)) {
  const element = $(name);
  if (element.tagName === "FORM") element.onsubmit = event => { event.preventDefault(); run(action); };
  else element.onclick = () => run(action);
}

// ---------------------------------------------------------------- drawing and the list of objects

let painted = null;

function draw() {
  const {heat} = now(), prompt = selected()?.prompt;
  stage.over([painted, heat, ghost].filter(Boolean), prompt?.points, prompt?.box);
}

/** Bring the picture, the list and the buttons up to date with the state. */
function render() {
  if (!photo) return;
  ghost = null;
  const state = now();
  list(state);
  repaint();
  const {candidates, chosen} = selected() ?? {};
  $("choices").hidden = !(candidates?.length > 1);
  const choices = (candidates ?? []).map((candidate, index) => choiceRow(candidate, index, index === chosen, choose));
  $("choices").replaceChildren($("choices").firstElementChild, ...choices);
  $("undo").disabled = !history.canUndo && !draft;
  $("redo").disabled = !history.canRedo;
  const any = state.objects.some(object => object.mask);
  $("found").hidden = !any && !last;
  $("take").hidden = !any;
  for (const button of $("copy").querySelectorAll("button")) {  // a mask is too long for a command
    button.disabled = Boolean(last?.fields.areas ?? last?.fields.prompts?.[0].examples) && button.dataset.copy !== "curl";
  }
  $("copy").hidden = !last || !(last.path in {"/segment": 1, "/everything": 1, "/classify": 1, "/semantic": 1});
}

/** Show a row for each object, with what its buttons do. */
function list(state) {
  const rows = state.objects.flatMap((object, index) => object.mask ? [objectRow(object, index, index === state.selected, {
    pick() { history.push({...state, selected: index === state.selected ? -1 : index}); render(); },
    hide() { change(index, {...object, hidden: !object.hidden}); },
    drop() { change(index); },
    light,
  })] : []);
  for (const button of rows.flatMap(row => [...row.querySelectorAll("button")])) button.disabled = Boolean(draft);
  $("objects").replaceChildren(...rows);
}

function change(index, object) {
  const state = history.state, objects = state.objects.toSpliced(index, 1, ...(object ? [object] : []));
  history.push({...state, objects, selected: object ? state.selected : -1});
  render();
}

/** Show one object alone and mark its row; without one: all objects. */
function light(object = null) {
  if (object === lit || !photo) return;
  lit = object;
  repaint();
}

/** Paint the objects, or the lit one alone, and mark its row. */
function repaint() {
  const {objects} = now(), {width, height} = photo.copy, opacity = Number($("opacity").value);
  const all = paint(objects, width, height, opacity);
  top = all.top;
  if (pointed && !$("preview").checked) lit = underPointer();  // objects may have arrived under it
  else if (!objects.includes(lit)) lit = null;
  painted = lit ? paint(objects.map(object => ({...object, hidden: object !== lit})), width, height, opacity).picture : all.picture;
  draw();
  for (const row of $("objects").children) row.classList.toggle("lit", row.object === lit);
}

// ---------------------------------------------------------------- take away, keys

for (const button of $("take").querySelectorAll("button")) {
  button.onclick = () => run(() => take(button.dataset.take, photo, now().objects, selected()));
}
for (const button of $("copy").querySelectorAll("button")) {
  button.onclick = async () => {
    const text = snippets[button.dataset.copy](last, service);
    $("copied").textContent = text;
    $("copied").hidden = false;
    try { await navigator.clipboard.writeText(text); say("Copied."); } catch { say("Select the text below to copy it."); }
  };
}

document.addEventListener("keydown", event => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && !["checkbox", "radio", "range"].includes(event.target.type);
  if (typing || !photo) return;
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key.toLowerCase() === "z") { event.preventDefault(); step(event.shiftKey ? "redo" : "undo"); }
  else if (control || event.altKey) return;
  else if (event.key === "Escape") working() ? actions.cancel() : actions.clear();
  else if (event.key.toLowerCase() === "p") $("preview").click();
  else if ("123".includes(event.key)) choose(Number(event.key) - 1);
});
for (const input of document.getElementsByName("mode")) input.onchange = () => { stage.mode = input.value; stage.draw(); };
$("opacity").oninput = () => photo && render();
$("least").oninput = () => { $("least").dataset.touched = "yes"; $("least-shown").textContent = Number($("least").value).toFixed(2); };
$("preview").onchange = () => { ghost = null; photo && draw(); };
onPhotograph(show);
const {grpc_port: port, max_metadata_bytes: metadata} = await (await fetch("/playground/service.json")).json();
Object.assign(service, {grpc: `${location.hostname}:${port}`, metadata});
