// The page: photographs are opened, and buttons and keys become actions.

import {service} from "./api.js";
import {onPhotograph} from "./choose.js";
import * as click from "./click.js";
import * as collections from "./collections.js";
import * as everywhere from "./everywhere.js";
import {chosen} from "./files.js";
import * as find from "./find.js";
import * as heads from "./heads.js";
import * as job from "./job.js";
import {lastOf, recordOf, resume, warning} from "./keeping.js";
import {masks} from "./models.js";
import * as objects from "./objects.js";
import {$, abort, fail, grey, pressed, say, some, working} from "./page.js";
import {open} from "./photo.js";
import * as questions from "./questions.js";
import {suggest} from "./settings.js";
import * as snippets from "./snippets.js";
import {namesOf, saveOutline} from "./take.js";
import {begin, isExample, last, now, onChange, photo, selected, stage} from "./work.js";

const actions = {...click.actions, ...collections.actions, ...everywhere.actions, ...find.actions, ...heads.actions, ...job.actions, ...objects.actions, ...questions.actions};

async function run(action, ...given) {
  const at = pressed;
  try { await action(...given); } catch (error) { fail(error, at); }
}
for (const [name, action] of Object.entries(actions)) {
  const element = $(name);
  if (element?.tagName === "FORM") element.onsubmit = event => { event.preventDefault(); run(action); };
  else if (element) element.onclick = () => run(action);
}

// ---------------------------------------------------------------- photographs

let newest = null;  // what was chosen last: another may take longer to open
/** Open a file, or a photograph that has been opened. */
async function show(file, suited = {}) {
  if (!file) return;
  abort();
  newest = file;
  const at = pressed;
  try {
    const given = await file, opened = given.copy ? given : await open(given, suited.path), record = await recordOf(opened.id);
    if (newest !== file) return;
    abort();  // what was asked while it opened is about the former photograph
    begin(opened, record.objects);
    resume(record);
  } catch (error) { fail(error, at); return; }
  if (!suited.phrase) act();
  suggest(suited);
  for (const id of ["answers", "told"]) $(id).replaceChildren();
  $("menu").togglePopover(false);
  if (at === pressed) $("stage").focus({focusVisible: false});  // else the user has turned to something meanwhile
  const suggested = now().objects.filter(({suggested}) => suggested), hint = $("modes").disabled || suggested.length ? "" : "Click a thing to cut it out.";
  const again = now().objects.length > suggested.length && "The objects of last time are here again.", offered = suggested.length && `Accept or reject what is suggested: ${some(namesOf(suggested))}.`;
  say([`${photo.name}, ${photo.width} × ${photo.height}.`, hint, again, offered, suited.note, warning()].filter(Boolean).join(" "));
  return photo;
}

/** Open what was worked on last, or else a sample, and find what is known to be in it, unless the user was faster. */
async function first(sample, suited) {
  const former = await lastOf("photograph");
  if (newest) return;
  const shown = former ? await show(former.file, former) : await show(sample, suited);
  if (!shown || former || now().objects.length || !await masks || shown !== photo || working() || $("stage") !== document.activeElement) return;
  await run(find.first);
}

// ---------------------------------------------------------------- programs

const COPIED = ["/segment", "/everything", "/classify", "/semantic", "/search"];
let copied = null;
/** The request whose answer is in view: of the collections a search, of the other panels the last. */
const inView = () => $("panel-search").hidden ? last : collections.searched;
function offer() {
  const request = inView(), {areas, area, prompts: [prompt] = []} = request?.fields ?? {};
  const part = !request?.own && (areas ?? area ?? prompt?.examples);
  grey(document.querySelector("[data-copy=cli]"), part ? "The command takes no such mask: copy it as Python." : "");
  $("copy").hidden = !request?.own && (!COPIED.includes(request?.path) || (isExample() && request === last));
  $("copied").hidden ||= copied !== request;
}
onChange(offer);
$("tabs").addEventListener("click", offer);
for (const button of $("copy").querySelectorAll("button")) {
  button.onclick = () => run(async () => {
    const {grpc_port: port} = await service;
    copied = inView();
    const text = snippets[button.dataset.copy](copied, {origin: location.origin, grpc: `${location.hostname}:${port}`});
    const mask = !copied.own && ["client", "cli"].includes(button.dataset.copy) && snippets.maskIn(copied.fields), file = mask && snippets.outlineOf(copied);
    if (mask) await saveOutline(mask, file);
    $("copied").textContent = text;
    $("copied").hidden = false;
    $("copied").scrollIntoView({block: "nearest"});
    let done = "Copied.";
    try { await navigator.clipboard.writeText(text); } catch { done = "Select the text below to copy it."; }
    say(mask ? `${done} The outline that it reads is saved as ${file}.` : done);
  });
}

// ---------------------------------------------------------------- keys

const mode = name => () => { document.querySelector(`[name=mode][value=${name}]`).click(); };
const keys = {
  a: mode("include"), t: mode("exclude"), b: mode("box"), d: mode("draw"), h: mode("move"),
  n: actions.next, m: () => run(actions.alike), f2: () => selected() && $("called").select(), delete: actions.remove, backspace: actions.remove,
  escape: () => working() ? actions.cancel() : selected() && actions.next(),
  p: () => $("preview").click(), "/": () => { $("phrase").focus(); $("phrase").select(); }, "?": () => $("sheet").togglePopover(),
  "+": actions.larger, "=": actions.larger, "-": actions.smaller, 0: actions.fit,
  ",": () => job.actions.previous(), ".": () => job.actions.following(), x: () => run(actions.done),
  y: () => !$("decide").hidden && run(actions.accept), r: () => !$("decide").hidden && run(actions.reject),
  1: () => click.choose(0), 2: () => click.choose(1), 3: () => click.choose(2),
};
document.addEventListener("keydown", event => {
  const key = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
  if (control && "+=-0".includes(key) && event.target !== $("stage")) return;  // elsewhere it zooms the page
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) && !["checkbox", "radio", "range", "file"].includes(event.target.type);
  const over = document.querySelector(":popover-open");
  if (typing && key === "escape") $("stage").focus();
  if (typing || !photo || event.altKey || event.defaultPrevented || $("really").open || (over && (over.id !== "sheet" || key === "escape"))) return;
  const action = !control ? keys[key]
    : key === "z" ? event.shiftKey ? actions.redo : actions.undo
    : key === "y" ? actions.redo : "+=-0".includes(key) ? keys[key] : null;
  if (!action || (event.repeat && "xyr".includes(key))) return;  // held too long, they would decide about the next photographs
  event.preventDefault();
  action();
});
for (const input of document.getElementsByName("mode")) input.onchange = () => { stage.mode = input.value; stage.draw(); };

// The words of welcome go with the first thing that the user does.
const act = () => { $("welcome").hidden = true; };
$("again").onclick = () => { $("welcome").hidden = false; $("menu").togglePopover(false); };
document.addEventListener("submit", act);
document.addEventListener("pointerdown", event => { if (!event.target.closest("header, #welcome, #menu")) act(); });
onChange(() => { if (selected()) act(); });
Object.assign(collections.on, {open: show, run, searched: offer});
Object.assign(job.on, {open: show, collect: collections.receive});
/** Several files are added to a collection if its panel is open; else they are a job. */
const several = images => run($("panel-search").hidden ? job.begin : collections.receive, images);
$("job-folder").onchange = () => { const images = chosen($("job-folder")); $("job-folder").value = ""; $("menu").togglePopover(false); run(job.begin, images); };
run(onPhotograph, show, first, several);
