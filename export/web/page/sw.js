// The service worker: caches all files once fetched, per build of the page.

importScripts("build.js");

/** @type {ServiceWorkerGlobalScope & {BUILD: {id: string, shell: string[]}}} */
const scope = /** @type {any} */ (self);
const CACHE = `page-${scope.BUILD.id}`;
const CACHE_NAMES = /^page-[0-9a-f]{16}$/;

scope.addEventListener("install", (event) => {
  scope.skipWaiting();
  const files = scope.BUILD.shell.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(files)));
});

scope.addEventListener("activate", (event) => {
  event.waitUntil(activate());
});

scope.addEventListener("fetch", (event) => {
  const ours = event.request.method === "GET" && event.request.url.startsWith(scope.registration.scope);
  if (ours) event.respondWith(respond(event.request));
});

async function activate() {
  const old = (await caches.keys()).filter((name) => CACHE_NAMES.test(name) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await scope.clients.claim();
}

/**
 * Return the cached response, or else fetch it and cache it if possible. A reload request replaces the cached one.
 * @param {Request} request
 */
async function respond(request) {
  const cache = await caches.open(CACHE).catch(() => undefined); // fails when storage is full
  if (request.cache === "reload") await cache?.delete(request, { ignoreSearch: true }).catch(() => false);
  const cached = await cache?.match(request, { ignoreSearch: true }).catch(() => undefined);
  if (cached) return cached;
  const response = await fetch(request);
  if (response.ok) await cache?.put(request, response.clone()).catch(() => {});
  return response;
}
