// Has the browser keep what the page is made of, so that it works without a network the next time.

const PATIENCE = 1000; // milliseconds that the first text waits for it

/**
 * Gives once what is fetched is kept, or will not be soon enough.
 * @param {(text: string) => void} tell
 */
export async function keep(tell) {
  const workers = navigator.serviceWorker; // none where the page comes neither by https nor from this machine
  if (!workers) return tell("Kept for offline use only where it comes by https, or from this machine.");
  const works = "Works offline, with the models that you have opened.";
  const had = Boolean(workers.controller);
  const taken = new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true }));
  const registered = await workers.register("sw.js", { updateViaCache: "none" }).catch(() => undefined);
  if (!registered) return tell("Not kept for offline use: the browser does not allow it here.");
  const { installing } = registered;
  if (had) {
    taken.then(() => tell("There is a newer version of this page: load it again."));
    return tell(works);
  }
  taken.then(() => tell(works)); // also where that is later
  await Promise.race([taken, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
  if (workers.controller) return;
  if (installing?.state === "redundant") tell("Not kept for offline use: the browser has no room for it.");
  else tell("Works offline from the next visit on.");
}
