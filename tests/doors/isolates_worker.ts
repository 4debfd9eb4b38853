/** Passes requests on to one of several Workers, by the first part of their paths: `/one/v1/…`, `/two/v1/…`. */

interface Service {
  fetch(request: Request): Promise<Response>;
}

export default {
  async fetch(request: Request, env: Record<string, Service>): Promise<Response> {
    const url = new URL(request.url);
    const [, name, ...path] = url.pathname.split("/");
    if (!(name in env)) return new Response(null, { status: 404 });
    url.pathname = path.join("/");
    return await env[name].fetch(new Request(url, request));
  },
};
