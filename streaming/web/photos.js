// The studio's side that makes a persona of photos: send them, show how each was judged, make portraits where an identity system
// is installed, and save one. What a photo is worth and what is cut are the server's to say (exporters/portraits).

import { tabKeeps } from "./keep.js";
import { Trouble, asksForToken, megabytes, request, readToken } from "./link.js";
import { askToken } from "./token.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

const LOOK_MS = 500; // between two questions while the server works
const ALIVE_MS = 60_000; // between two signs of life while it does not
const COUNTS = [1, 2, 4, 6, 8];
const CHECKS = { frontal: "From the front", eyes_seen: "Eyes uncovered", mouth_seen: "Mouth visible" };
const SAVING = { photo: "The photo is cut, lit and matted …", pick: "The portrait is matted and saved …" };

const app = {
  known: { systems: [], most_photos: 12, most_bytes: 0, most_candidates: 8 },
  id: "", // of the sitting
  items: [], // photos: {key, name, url?, state, ...} in the order they came; those without a key are not on the server
  said: { photos: [], candidates: [], job: null, saved: null }, // the server's last word
  sending: false,
  photo: "", // key of the chosen one; "": the best
  pick: null, // seed of the chosen portrait
  wanted: 0, // portraits that were asked for
  celebrated: "", // the sitting whose persona was announced
  job: "", // what the last problem or work was of: judge | make | photo | pick
  pictures: new Map(), // name -> object URL
};

// -- small things -------------------------------------------------------------------------------------------------------------

function make(tag, fields = {}, ...children) {
  const { dataset = {}, ...rest } = fields;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

function icon(name) {
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("aria-hidden", "true");
  drawn.append(svg("use", { href: `#i-${name}` }));
  return drawn;
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const list = (words) => words.join(", ").replace(/, ([^,]*)$/, " and $1");

function complain(id, text = "", [label, act] = []) {
  $(id).hidden = !text;
  $(id).textContent = text;
  if (text && label) $(id).append(" ", make("button", { className: "plain small", type: "button", textContent: label, onclick: act }));
}

/** A failure in words, where it arose; a missing token is asked for, then `again`. */
function report(id, error, again) {
  if (!(error instanceof Trouble)) {
    console.error(error);
    error = new Trouble("server", "", "It did not work. Try again; if it stays like this, load the page again.");
  }
  if (error.status === 404 && app.id) forget();
  complain(id, error.text, error.kind === "token" ? ["Enter token", () => askToken(() => (complain(id), again()))] : again === lookAgain ? ["Try again", again] : []);
}

const at = (path = "") => `/studio/sittings/${app.id}${path}`;

async function remove(path) {
  await request(path, { method: "DELETE", as: "response" });
}

/** A picture of the server as an object URL; fetched once. */
async function picture(name) {
  if (!app.pictures.has(name)) app.pictures.set(name, request(at(`/picture/${name}`), { as: "blob" }).then((blob) => URL.createObjectURL(blob)));
  try {
    return await app.pictures.get(name);
  } catch (trouble) {
    app.pictures.delete(name);
    throw trouble;
  }
}

const show = (node, attribute, name) => picture(name).then((url) => node.setAttribute(attribute, url), () => {});

// -- the sitting --------------------------------------------------------------------------------------------------------------

async function sit() {
  if (app.id) return;
  app.id = (await request("/studio/sittings", { json: {} })).id;
  tabKeeps.set("sitting", app.id);
}

/** The page as it was before the first photo. */
function forget() {
  for (const { url } of app.items) if (url) URL.revokeObjectURL(url);
  for (const url of app.pictures.values()) url.then(URL.revokeObjectURL, () => {});
  app.pictures.clear();
  Object.assign(app, { id: "", items: [], said: { photos: [], candidates: [], job: null, saved: null }, photo: "", pick: null, wanted: 0, job: "" });
  tabKeeps.set("sitting", "");
  $("photo-list").replaceChildren();
  $("candidate-list").replaceChildren();
  for (const id of ["photos-problem", "work-problem", "pick-problem"]) complain(id);
  draw();
}

async function startOver() {
  const { id } = app;
  forget();
  $("persona-name").value = "";
  $("persona-consent").checked = false;
  draw();
  $("add-photos").focus();
  if (id) await remove(`/studio/sittings/${id}`).catch(() => {}); // it goes by itself later
}

/** What the server says, until its work is over. */
async function follow(said) {
  const { id } = app;
  let lost = false;
  hear(said);
  while (app.id === id && working()) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (app.id !== id) return;
    try {
      const now = await request(at());
      if (lost) complain(problem());
      lost = false;
      hear(now);
    } catch (trouble) {
      if (trouble.kind !== "offline") throw trouble;
      lost = true; // the work goes on without us
      complain(problem(), trouble.text);
    }
  }
}

/** Where it is said what went wrong with the present work. */
const problem = () => ({ judge: "photos-problem", pick: "pick-problem" })[app.job] || "work-problem";

function hear(said) {
  app.said = said;
  for (const photo of said.photos) {
    const item = app.items.find(({ key }) => key === photo.key);
    if (item) Object.assign(item, photo);
    else app.items.push({ ...photo });
  }
  const { job } = said;
  if (job?.over && job.error) complain(problem(), job.error, job.kind === "judge" ? ["Try again", lookAgain] : []);
  draw();
  if (said.saved) celebrate();
}

const working = () => Boolean(app.said.job && !app.said.job.over);

// -- photos -------------------------------------------------------------------------------------------------------------------

async function addPhotos(files) {
  if (app.sending || working() || app.said.saved) return;
  complain("photos-problem");
  app.sending = true;
  const room = app.known.most_photos - app.items.length;
  if (files.length > room) complain("photos-problem", `${app.known.most_photos} photos are the most, so ${files.length - room} were left out.`);
  const sent = [];
  for (const file of files.slice(0, room)) {
    const item = { key: "", name: file.name, url: URL.createObjectURL(file), state: "sending", file };
    app.items.push(item);
    sent.push(item);
  }
  draw();
  try {
    for (const item of sent) await send(item);
    app.sending = false;
    await look();
  } catch (trouble) {
    app.items = app.items.filter((item) => item.state !== "sending");
    report("photos-problem", trouble, () => addPhotos(files));
  } finally {
    app.sending = false;
    draw();
  }
}

const unseen = () => app.items.filter(({ state }) => state === "new");
const lookAgain = () => (complain("photos-problem"), look());

/** Has the server look at the photos that it has not looked at yet. */
async function look() {
  if (working() || !unseen().length) return;
  app.job = "judge";
  try {
    await follow(await request(at("/judge"), { json: {} }));
  } catch (trouble) {
    report("photos-problem", trouble, lookAgain);
  }
  draw();
}

/** One photo on its way; what is wrong with it alone is said beside it. Raises Trouble where no other would get through either. */
async function send(item) {
  try {
    await sit();
    const { file } = item;
    if (file.type && !file.type.startsWith("image/")) throw new Trouble("refused", "", "This is not a picture; choose JPEG, PNG, WebP or AVIF files.", { status: 400 });
    if (file.size > app.known.most_bytes) throw new Trouble("portrait", "", `It is larger (${megabytes(file.size)}) than the server takes (${megabytes(app.known.most_bytes)}); choose a smaller one.`, { status: 413 });
    item.key = (await request(at(`/photo?name=${encodeURIComponent(file.name)}`), { body: file, headers: { "Content-Type": "application/octet-stream" } })).key;
    item.state = "new";
  } catch (trouble) {
    if (![400, 413].includes(trouble.status)) throw trouble;
    Object.assign(item, { state: "refused", text: trouble.text });
  }
  delete item.file;
  draw();
}

async function takeAway(item) {
  try {
    if (item.key) await remove(at(`/photo/${item.key}`));
    if (item.url) URL.revokeObjectURL(item.url);
    app.items = app.items.filter((other) => other !== item);
    if (app.photo === item.key) app.photo = "";
    if (app.id) hear(await request(at()));
    $("add-photos").focus();
  } catch (trouble) {
    report("photos-problem", trouble, () => takeAway(item));
  }
  draw();
}

const fit = () => app.items.filter(({ state }) => state === "fit");
const best = () => fit().reduce((found, item) => (!found || item.mark > found.mark ? item : found), null);
const chosen = () => fit().find(({ key }) => key === app.photo) || best();

function drawPhotos() {
  const cards = new Map([...$("photo-list").children].map((card) => [card.item, card]));
  const order = app.items.map((item) => {
    const card = cards.get(item) || photoCard(item);
    const stamp = `${item.state} ${item.text || ""} ${item.state === "new" && working()}`;
    if (card.stamp !== stamp) fillPhoto(card, item);
    card.stamp = stamp;
    return card;
  });
  if (order.some((card, index) => $("photo-list").children[index] !== card) || order.length !== $("photo-list").children.length) $("photo-list").replaceChildren(...order);
  for (const card of order) {
    const { item } = card;
    card.querySelector(".badge").hidden = fit().length < 2 || item !== best();
    const input = card.querySelector("input"); // a system looks at all, or at the best
    input.checked = item.state === "fit" && item === chosen() && !fresh();
    input.disabled = item.state !== "fit" || working() || fresh();
    card.querySelector(".take-away").disabled = working() || app.sending;
  }
  $("photo-list").hidden = !order.length;
}

function photoCard(item) {
  const card = make("li", { className: "photo-card" });
  card.item = item;
  const input = make("input", { type: "radio", name: "photo", onchange: () => ((app.photo = item.key), draw()) });
  input.setAttribute("aria-label", item.name);
  const away = make("button", { type: "button", className: "take-away", title: "Take away", onclick: () => takeAway(item) }, icon("close"));
  away.setAttribute("aria-label", `Take ${item.name} away`);
  const badge = make("span", { className: "badge", textContent: "Best", hidden: true });
  card.append(make("label", {}, input, make("span", { className: "view" }), badge), away, make("p", { className: "caption", textContent: item.name, title: item.name }), make("div", { className: "facts" }));
  return card;
}

function fillPhoto(card, item) {
  card.dataset.state = item.state;
  const view = card.querySelector(".view");
  const facts = card.querySelector(".facts");
  if (item.state === "fit") {
    view.replaceChildren(framed(item));
    facts.replaceChildren(checks(item));
    if (item.done.length) facts.append(make("p", { className: "fine", textContent: `To be ${item.done.join("; ")}.` }));
  } else {
    view.replaceChildren(item.url ? make("img", { src: item.url, alt: "", onerror: ({ target }) => target.remove() }) : "");
    if (item.state === "refused") facts.replaceChildren(make("p", { className: "refused", textContent: item.text }));
    else facts.replaceChildren(make("p", { className: "fine waiting", textContent: item.state === "sending" ? "On its way …" : working() ? "Being looked at …" : "Not looked at yet." }));
  }
}

/** The photo, upright, with what will not be kept of it dimmed. */
function framed({ key, size: [width, height], box: [x0, y0, x1, y1] }) {
  const whole = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "The photo, and the part of it that is kept" });
  const photo = svg("image", { width, height });
  show(photo, "href", `photo-${key}`);
  const shade = svg("path", { class: "shade", "fill-rule": "evenodd", d: `M0 0H${width}V${height}H0ZM${x0} ${y0}V${y1}H${x1}V${y0}Z` });
  whole.append(photo, shade, svg("rect", { class: "kept", x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
  return whole;
}

function checks({ wrong }) {
  const rows = Object.entries(CHECKS).map(([mark, text]) => [mark in wrong ? capital(wrong[mark]) : text, !(mark in wrong)]);
  for (const [mark, text] of Object.entries(wrong)) if (!(mark in CHECKS)) rows.push([capital(text), false]);
  return make("ul", { className: "checks" }, ...rows.map(([text, ok]) => make("li", { dataset: { ok } }, make("span", { className: "sign" }, icon(ok ? "check" : "warn")), text)));
}

// -- portraits ----------------------------------------------------------------------------------------------------------------

const how = () => document.querySelector('input[name="how"]:checked').value;
const fresh = () => how() === "new" && app.known.systems.length > 0;
const system = () => app.known.systems.find(({ name }) => name === $("system").value);

function drawSystem() {
  const told = system();
  if (!told) return;
  $("prompt").placeholder = told.prompt;
  $("system-text").textContent = `${capital(told.variant)}, on ${told.base}. It looks at ${told.together ? "all photos together" : "the best photo"}.`;
}

function drawCandidates() {
  const made = new Map(app.said.candidates.map((candidate) => [candidate.seed, candidate]));
  const coming = app.said.job?.kind === "make" && working();
  const seeds = [...Array(Math.max(coming ? app.wanted : 0, ...[...made.keys()].map((seed) => seed + 1), 0)).keys()].filter((seed) => coming || made.has(seed));
  $("portraits-panel").hidden = !seeds.length;
  const cards = new Map([...$("candidate-list").children].map((card) => [card.seed, card]));
  const order = seeds.map((seed) => {
    const there = made.get(seed);
    let card = cards.get(seed);
    if (!card || Boolean(card.there) !== Boolean(there)) card = there ? candidateCard(there) : make("li", { className: "photo-card coming" }, make("span", { className: "view" }), make("p", { className: "caption", textContent: `Portrait ${seed + 1}` }));
    Object.assign(card, { seed, there });
    return card;
  });
  if (order.some((card, index) => $("candidate-list").children[index] !== card) || order.length !== $("candidate-list").children.length) $("candidate-list").replaceChildren(...order);
  if (!made.has(app.pick)) app.pick = null;
  for (const card of order) {
    const input = card.querySelector("input");
    if (input) [input.checked, input.disabled] = [card.seed === app.pick, card.there.mark === null || (working() && app.said.job.kind === "save")];
  }
}

function candidateCard({ seed, mark, warnings, complaint }) {
  const input = make("input", { type: "radio", name: "candidate", onchange: () => ((app.pick = seed), draw()) });
  input.setAttribute("aria-label", `Portrait ${seed + 1}`);
  const image = make("img", { alt: "" });
  show(image, "src", `candidate-${seed}`);
  const facts = make("div", { className: "facts" });
  if (mark === null) facts.append(make("p", { className: "refused", textContent: complaint }));
  else if (warnings.length) facts.append(make("p", { className: "fine", textContent: `${capital(list(warnings))}.` }));
  return make("li", { className: "photo-card", dataset: { state: mark === null ? "refused" : "fit" } }, make("label", {}, input, make("span", { className: "view square" }, image)), make("p", { className: "caption", textContent: `Portrait ${seed + 1}` }), facts);
}

async function makePortraits() {
  complain("work-problem");
  complain("pick-problem");
  app.job = "make";
  app.wanted = Number($("count").value);
  try {
    await follow(await request(at("/make"), { json: { system: $("system").value, prompt: $("prompt").value, candidates: app.wanted, consent: $("persona-consent-text").textContent } }));
  } catch (trouble) {
    report("work-problem", trouble, makePortraits);
  }
  draw();
}

async function save(what) {
  const id = "pick" in what ? "pick-problem" : "work-problem";
  complain("work-problem");
  complain("pick-problem");
  app.job = "pick" in what ? "pick" : "photo";
  try {
    await follow(await request(at("/save"), { json: { name: $("persona-name").value, consent: $("persona-consent-text").textContent, ...what } }));
  } catch (trouble) {
    report(id, trouble, () => save(what));
  }
  draw();
}

async function cancel() {
  try {
    hear(await request(at("/cancel"), { json: {} }));
  } catch (trouble) {
    report("work-problem", trouble, cancel);
  }
}

async function celebrate() {
  const { name, done, generated } = app.said.saved;
  if (app.celebrated === app.id) return;
  app.celebrated = app.id;
  $("saved-title").textContent = `${name} is ready`;
  $("saved-text").textContent = generated ? "A generated portrait; what it was made of is kept with the persona, beside your statement." : `The portrait is the photo itself${done.length ? `, ${done.join("; ")}` : ", with nothing changed"}. The person was matted from the background, and your statement is kept with it.`;
  $("go-live").href = `/?persona=${encodeURIComponent(name)}`;
  $("go-live").querySelector("span").textContent = `Go live with ${name}`;
  draw();
  $("saved-title").focus();
  $("saved-picture").removeAttribute("src");
  const portrait = await request(`/personas/${encodeURIComponent(name)}/preview.jpg`, { as: "blob" }).catch(() => null);
  if (portrait) $("saved-picture").src = URL.createObjectURL(portrait);
}

// -- the whole ----------------------------------------------------------------------------------------------------------------

/** What is missing before anything can be made, in words. */
function lacks() {
  if (!app.items.length) return "First choose a photo.";
  if (app.sending || (working() && app.said.job.kind === "judge")) return "The photos are being looked at.";
  if (!fit().length && unseen().length) return "The photos have not been looked at yet.";
  if (!fit().length) return "None of the photos can be used; add one that can.";
  if (!$("persona-consent").checked) return "First tick that you have the right to use the photos and the person agrees.";
  return "";
}

const nameless = () => (/[\p{L}\p{N}]/u.test($("persona-name").value) ? "" : "First give the persona a name.");

function draw() {
  const saved = Boolean(app.said.saved);
  const { job } = app.said;
  const busy = working();
  $("saved").hidden = !saved;
  $("photos-panel").hidden = $("persona-side").hidden = saved;
  drawPhotos();
  drawCandidates();
  if (saved) $("portraits-panel").hidden = true;
  $("how-photo").hidden = fresh();
  $("how-new").hidden = !fresh();
  $("start-over").hidden = !app.items.length;
  $("start-over").disabled = app.sending;
  $("add-photos").disabled = app.sending || busy || app.items.length >= app.known.most_photos;
  $("add-photos").querySelector("strong").textContent = app.items.length ? "Add photos" : "Choose photos";
  $("photos-panel").dataset.empty = !app.items.length;
  const looked = app.items.filter(({ state }) => state === "new" || state === "sending").length;
  $("photos-status").textContent = looked ? "" : fit().length > 1 ? "The frame shows what is kept of a photo." : fit().length ? "The frame shows what is kept of the photo." : "";
  const lacking = lacks();
  const made = app.said.candidates.length > 0;
  const why = lacking || (fresh() ? "" : nameless());
  $("use-why").textContent = busy ? "" : why;
  $("use").disabled = busy || Boolean(why);
  $("make").disabled = busy || Boolean(lacking);
  $("make").textContent = made ? "Make more, or others" : "Make portraits";
  $("make").classList.toggle("primary", !made);
  $("make").classList.toggle("plain", made);
  const first = app.pick === null ? "Choose the portrait to save." : lacking || nameless();
  $("pick-why").textContent = busy ? "" : first;
  $("pick").disabled = busy || Boolean(first);
  for (const id of ["system", "prompt", "count", "persona-name", "persona-consent"]) $(id).disabled = busy && job.kind !== "judge";
  for (const input of document.querySelectorAll('input[name="how"]')) input.disabled = busy;
  drawShot();
  drawWork(busy && job.kind !== "judge" ? job : null);
}

function drawShot() {
  const item = chosen();
  $("shot").hidden = !item;
  if (!item) return;
  const name = `portrait-${item.key}`;
  if ($("shot").dataset.name !== `${app.id} ${name}`) {
    $("shot").dataset.name = `${app.id} ${name}`;
    show($("shot-picture"), "src", name);
  }
}

function drawWork(job) {
  $("work").hidden = !job;
  if (!job) return;
  const told = job.kind === "make" && job.total;
  if (told) $("work-bar").value = job.done / job.total;
  else $("work-bar").removeAttribute("value");
  const ready = app.said.candidates.length;
  const text = job.kind === "save" ? SAVING[app.job] || SAVING.photo : told ? `Portrait ${Math.min(ready + 1, app.wanted)} of ${app.wanted}` : "System and base are being loaded …";
  if ($("work-text").textContent !== text) $("work-text").textContent = text;
}

/** Which side of the studio is shown; a recording is not left by accident. */
function turn() {
  const recording = ["opening", "recording", "saving"].includes($("stage").dataset.state);
  if (recording && location.hash !== "#minute") history.replaceState(null, "", "#minute");
  const minute = location.hash === "#minute";
  $("by-minute").hidden = $("status").hidden = !minute;
  $("by-photos").hidden = minute;
  $("skip").textContent = minute ? "Skip to Record a minute" : "Skip to Choose photos";
  $("skip").onclick = (event) => (event.preventDefault(), $(minute ? "record" : "add-photos").focus());
  for (const [id, here] of [["way-photos", !minute], ["way-minute", minute]]) {
    if (here) $(id).setAttribute("aria-current", "page");
    else $(id).removeAttribute("aria-current");
  }
}

async function prepare() {
  try {
    app.known = await request("/studio/systems");
  } catch (trouble) {
    return report("photos-problem", trouble, prepare);
  }
  const { systems, trouble, most_candidates: most } = app.known;
  $("how").hidden = !systems.length;
  $("no-systems").hidden = Boolean(systems.length);
  if (trouble) complain("work-problem", trouble);
  $("system").replaceChildren(...systems.map(({ name }) => new Option(name, name)));
  $("count").replaceChildren(...COUNTS.filter((count) => count <= most).map((count) => new Option(count, count, count === 4, count === 4)));
  drawSystem();
  draw();
  const kept = tabKeeps.get("sitting", "");
  if (!kept || app.id) return;
  app.id = kept;
  await request(at()).then(resume, forget);
}

/** A sitting that this tab had before it was loaded anew. */
function resume(said) {
  if (said.job?.kind === "make" || said.candidates.length) {
    document.querySelector('input[name="how"][value="new"]').checked = true;
    app.wanted = Number($("count").value);
  }
  app.job = said.job?.kind === "save" ? "photo" : said.job?.kind || "";
  follow(said).then(lookAgain).catch((trouble) => report("photos-problem", trouble, prepare));
}

// -- wiring -------------------------------------------------------------------------------------------------------------------

$("add-photos").addEventListener("click", () => $("photo-files").click());
$("photo-files").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  target.value = "";
  if (files.length) addPhotos(files);
});
$("start-over").addEventListener("click", startOver);
$("another").addEventListener("click", startOver);
$("use").addEventListener("click", () => save({ photo: chosen().key }));
$("make").addEventListener("click", makePortraits);
$("pick").addEventListener("click", () => save({ pick: app.pick }));
$("cancel").addEventListener("click", cancel);
$("system").addEventListener("change", drawSystem);
for (const id of ["persona-name", "persona-consent"]) $(id).addEventListener("input", draw);
for (const input of document.querySelectorAll('input[name="how"]')) input.addEventListener("change", draw);

const dragsFiles = ({ dataTransfer }) => !$("by-photos").hidden && [...(dataTransfer?.types || [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  $("veil").hidden = false;
});
addEventListener("dragleave", ({ relatedTarget }) => (relatedTarget ? null : ($("veil").hidden = true)));
addEventListener("drop", (event) => {
  $("veil").hidden = true;
  if (!dragsFiles(event)) return;
  event.preventDefault();
  addPhotos([...event.dataTransfer.files]);
});
addEventListener("hashchange", turn);
setInterval(() => app.id && !working() && !app.said.saved && request(at()).then(hear, (trouble) => trouble.status === 404 && report("photos-problem", trouble)), ALIVE_MS);

readToken();
turn();
draw();
if (await asksForToken()) report("photos-problem", new Trouble("token", "", "This server asks for an access token: paste the one that its operator gave you."), prepare);
else prepare();
