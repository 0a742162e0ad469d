// Has the browser keep what the page is made of, so that it works without a network the next time.

const PATIENCE = 3000; // milliseconds

/**
 * Gives once what is fetched is kept, or that is not to be had.
 * @param {(text: string) => void} tell
 */
export async function keep(tell) {
  const workers = navigator.serviceWorker; // none where the page comes neither by https nor from this machine
  if (!workers) return tell("Kept for offline use only where the page comes by https, or from this machine.");
  const had = Boolean(workers.controller);
  const taken = new Promise((resolve) => workers.addEventListener("controllerchange", resolve, { once: true }));
  try {
    await workers.register("sw.js");
    if (!had) await Promise.race([taken, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
    tell("Works offline, with the models that you have opened.");
    if (had) taken.then(() => tell("There is a newer version of this page: load it again."));
  } catch {
    tell("Not kept for offline use: the browser does not allow it here.");
  }
}
