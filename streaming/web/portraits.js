// Choosing who is shown: the server's personas, a picture of one's own (chosen, dropped or taken with the camera), and the
// statement of consent without which no picture of one's own is used.

import { Trouble, megabytes, openDevice, request, upload } from "./link.js";

const $ = (id) => document.getElementById(id);
const spoken = (name) => name.charAt(0).toUpperCase() + name.slice(1).replace(/[-_]+/g, " ");

export class Portraits extends EventTarget {
  /** Events: choose {choice}. A choice is {name, label, src} of the server, or {upload, label, src} of one's own. */
  constructor() {
    super();
    this.chosen = null;
    this.file = null;
    $("choose-file").addEventListener("click", () => $("portrait-file").click());
    $("portrait-file").addEventListener("change", ({ target }) => {
      if (target.files[0]) this.offer(target.files[0]);
      target.value = "";
    });
    $("take-shot").addEventListener("click", () => this.openCamera());
    $("shot-take").addEventListener("click", () => this.takeShot());
    $("shot-again").addEventListener("click", () => this.openCamera());
    $("consent").addEventListener("change", () => this.refresh());
    $("portrait-use").addEventListener("click", () => this.use());
    $("portrait-dialog").addEventListener("close", () => this.closeCamera());
  }

  /** Fills the gallery from the server; raises Trouble. */
  async load(preferred) {
    const listed = await request("/personas");
    const personas = listed.personas || listed;
    $("gallery").replaceChildren();
    for (const persona of personas) {
      const { name } = persona;
      const label = spoken(name);
      const picture = await request(persona.preview || `/personas/${encodeURIComponent(name)}/preview.jpg`, { as: "blob" }).catch(() => null);
      this.add({ name, label, src: picture ? URL.createObjectURL(picture) : "" });
    }
    if (!personas.length) {
      const empty = document.createElement("p");
      empty.className = "empty";
      empty.textContent = "This server has no portraits of its own yet: use a picture, or take a photo.";
      $("gallery").append(empty);
    }
    const first = [...$("gallery").querySelectorAll("input")].find(({ value }) => value === preferred) || $("gallery").querySelector("input");
    first?.click();
  }

  add(choice, { select = false } = {}) {
    $("gallery").querySelector(".empty")?.remove();
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "portrait", value: choice.name || choice.upload });
    const picture = Object.assign(document.createElement("img"), { alt: "" });
    if (choice.src) picture.src = choice.src;
    const caption = document.createElement("span");
    caption.textContent = choice.label;
    label.title = choice.label;
    label.append(input, picture, caption);
    input.addEventListener("change", () => {
      this.chosen = choice;
      this.dispatchEvent(new CustomEvent("choose", { detail: { choice } }));
    });
    if (choice.upload) $("gallery").prepend(label);
    else $("gallery").append(label);
    if (select) input.click();
  }

  /** Shows a picture and asks for the consent statement. */
  offer(file) {
    this.closeCamera();
    this.file = file;
    URL.revokeObjectURL($("portrait-preview").src);
    $("portrait-preview").src = URL.createObjectURL(file);
    this.show({ camera: false });
    if (file.type && !file.type.startsWith("image/")) this.complain("This is not a picture. Choose a JPEG, PNG or WebP file with a face in it.");
  }

  show({ camera, taken = false }) {
    $("portrait-title").textContent = camera ? "Take a photo" : "Use this picture?";
    $("shot").hidden = !camera;
    $("portrait-preview").hidden = camera;
    $("consent-row").hidden = camera;
    $("shot-take").hidden = !camera;
    $("shot-again").hidden = !taken;
    $("portrait-use").hidden = camera;
    $("portrait-advice").textContent = camera
      ? "Look straight into the camera with closed lips and a calm face, shoulders in the picture, light from the front."
      : "A face seen from the front, well lit, with the shoulders in the picture works best.";
    $("portrait-problem").hidden = true;
    $("consent").checked = false;
    this.busy = false;
    this.refresh();
    if (!$("portrait-dialog").open) $("portrait-dialog").showModal();
  }

  refresh() {
    $("portrait-use").disabled = !$("consent").checked || !this.file || this.busy;
    $("portrait-use").textContent = this.busy ? "Looking for the face…" : "Use this portrait";
  }

  complain(text) {
    $("portrait-problem").textContent = text;
    $("portrait-problem").hidden = false;
  }

  async use() {
    const { file } = this;
    this.busy = true;
    this.refresh();
    $("portrait-problem").hidden = true;
    try {
      const { id } = await upload("/upload", { kind: "portrait", consent: $("consent-text").textContent, picture: file });
      $("portrait-dialog").close();
      this.add({ upload: id, label: spoken(file.name.replace(/\.\w+$/, "")), src: URL.createObjectURL(file) }, { select: true });
    } catch (trouble) {
      this.complain(trouble.status === 413 ? `This picture (${megabytes(file.size)}) is larger than the server accepts. Choose a smaller one.` : trouble.text || String(trouble));
    } finally {
      this.busy = false;
      this.refresh();
    }
  }

  async openCamera() {
    this.file = null;
    this.show({ camera: true });
    $("shot-take").disabled = true;
    try {
      this.track = await openDevice("camera", $("camera-device").value);
      if (!$("portrait-dialog").open) return this.closeCamera();
      $("shot").srcObject = new MediaStream([this.track]);
      await $("shot").play();
      $("shot-take").disabled = false;
      $("shot-take").focus();
    } catch (error) {
      if (error instanceof Trouble) this.complain(`${error.title}. ${error.text}`);
    }
  }

  closeCamera() {
    this.track?.stop();
    this.track = null;
    $("shot").srcObject = null;
  }

  takeShot() {
    const video = $("shot");
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        this.offer(new File([blob], "photo.jpg", { type: "image/jpeg" }));
        $("shot-again").hidden = false;
      },
      "image/jpeg",
      0.95,
    );
  }
}
