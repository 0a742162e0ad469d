// The service worker: caches all files once fetched, per build of the page.

importScripts("build.js");

/** @type {ServiceWorkerGlobalScope & {BUILD: {id: string, shell: string[]}}} */
const scope = /** @type {any} */ (self);
const CACHE = `page-${scope.BUILD.id}`;
const OURS = /^page-[0-9a-f]{16}$/;

scope.addEventListener("install", (event) => {
  scope.skipWaiting();
  const files = scope.BUILD.shell.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(files)));
});

scope.addEventListener("activate", (event) => {
  event.waitUntil(taken());
});

scope.addEventListener("fetch", (event) => {
  const ours = event.request.method === "GET" && event.request.url.startsWith(scope.registration.scope);
  if (ours) event.respondWith(kept(event.request));
});

async function taken() {
  const old = (await caches.keys()).filter((name) => OURS.test(name) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await scope.clients.claim();
}

/**
 * Return the cached response, or else fetch it and cache it if possible. A reload request replaces the cached one.
 * @param {Request} request
 */
async function kept(request) {
  const cache = await caches.open(CACHE).catch(() => undefined); // fails when storage is full
  if (request.cache === "reload") await cache?.delete(request, { ignoreSearch: true }).catch(() => false);
  const found = await cache?.match(request, { ignoreSearch: true }).catch(() => undefined);
  if (found) return found;
  const response = await fetch(request);
  if (response.ok) await cache?.put(request, response.clone()).catch(() => {});
  return response;
}
