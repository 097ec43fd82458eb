// The studio's dialog for the access token.

import { setToken } from "./link.js";

const $ = (id) => document.getElementById(id);

/** Asks for a token, and goes on with `then` where one was given. */
export function askToken(then) {
  const dialog = $("token-dialog");
  $("token").value = dialog.returnValue = "";
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "ok" || !$("token").value.trim()) return;
    setToken($("token").value.trim());
    then();
  }, { once: true });
  dialog.showModal();
}
