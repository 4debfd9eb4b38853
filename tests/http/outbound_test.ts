import assert from "node:assert/strict";
import { createNetwork } from "../../functions/network.ts";
import type { RequestError } from "../../lib/errors.ts";
import { createOutbound, isPublic, type Network } from "../../lib/http/outbound.ts";

const network = createNetwork();
const LIMITS = { maxBytes: 1000, timeoutMs: 1000 };

/** A network of names whose addresses are given, which notes where it was made to connect. */
function named(addresses: Record<string, string[][]>, answer = () => new Response("ok")) {
  const connected: string[] = [];
  const it: Network = {
    lookup: (host) => Promise.resolve(addresses[host]?.shift() ?? []),
    fetch(url, _init, address) {
      connected.push(`${url.href} at ${address}`);
      return Promise.resolve(answer());
    },
  };
  return { network: it, connected };
}

const refuses = (pattern: RegExp, code = "url_refused") => (error: unknown) => {
  assert.equal((error as RequestError).code, code, String(error));
  assert.match((error as Error).message, pattern);
  return true;
};

Deno.test("what a URL says by itself: scheme, credentials, port, addresses in every spelling", () => {
  const { check } = createOutbound(network);
  const table: [string, RegExp][] = [
    ["picture.png", /expected an absolute URL/],
    ["//example.com/", /expected an absolute URL/],
    ["http://example.com/", /expected https:, found http:/],
    ["file:///etc/passwd", /found file:/],
    ["gopher://example.com/", /found gopher:/],
    ["data:,x", /found data:/],
    ["javascript:alert(1)", /found javascript:/],
    ["https://user@example.com/", /no user name/],
    ["https://:secret@example.com/", /no user name/],
    ["https://example.com@127.0.0.1/", /no user name/],
    ["https://example.com:22/", /expected port 443, found 22/],
    ["https://example.com:80/", /found 80/],
    ["https://127.0.0.1/", /expected a host name, found an address/],
    ["https://8.8.8.8/", /expected a host name/],
    ["https://2130706433/", /expected a host name/],
    ["https://0x7f000001/", /expected a host name/],
    ["https://0x7f.1/", /expected a host name/],
    ["https://0177.0.0.1/", /expected a host name/],
    ["https://127.1/", /expected a host name/],
    ["https://0/", /expected a host name/],
    ["https://127.0.0.1./", /expected a host name/],
    ["https://１２７.０.０.１/", /expected a host name/],
    ["https://127。0。0。1/", /expected a host name/],
    ["https://[::1]/", /expected a host name/],
    ["https://[::ffff:127.0.0.1]/", /expected a host name/],
    ["https://[::ffff:7f00:1]/", /expected a host name/],
  ];
  for (const [url, message] of table) assert.throws(() => check(url), refuses(message), url);
  assert.equal(check("https://example.com:443/a?b").href, "https://example.com/a?b");
  const open = createOutbound(network, { allowPrivate: true });
  assert.equal(open.check("http://127.0.0.1:8080/").port, "8080");
  assert.throws(() => open.check("file:///etc/passwd"), refuses(/found file:/));
  assert.throws(() => open.check("http://user@localhost/"), refuses(/no user name/));
});

Deno.test("which addresses are public", () => {
  const inside = [
    ...["0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"],
    ...["172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1"],
    ...["240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe"],
    ...["64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "fc00::1", "fd12::1", "fe80::1", "fec0::1", "ff02::1"],
    ...["2001:db8::1", "4000::1", "no address", ""],
  ];
  assert.deepEqual(inside.filter(isPublic), []);
  const outside = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"];
  assert.deepEqual(outside.filter((it) => !isPublic(it)), []);
});

Deno.test("all addresses of a name must be public, and the connection goes to one that was checked", async () => {
  const { network, connected } = named({
    "good.example": [["8.8.8.8", "2606:4700::1111"]],
    "inside.example": [["192.168.0.7"]],
    "mixed.example": [["8.8.8.8", "::ffff:127.0.0.1"]],
    // The second look-up would lead inside; there is none.
    "rebinding.example": [["8.8.4.4"], ["127.0.0.1"]],
  });
  const out = createOutbound(network);
  assert.equal(new TextDecoder().decode((await out.fetch("https://good.example/a", LIMITS)).bytes), "ok");
  await out.fetch("https://rebinding.example/", LIMITS);
  for (const host of ["inside", "mixed", "rebinding"]) {
    await assert.rejects(out.fetch(`https://${host}.example/`, LIMITS), refuses(/public addresses/));
  }
  await assert.rejects(out.fetch("https://none.example/", LIMITS), refuses(/no address/, "url_failed"));
  assert.deepEqual(connected, [
    "https://good.example/a at 8.8.8.8",
    "https://rebinding.example/ at 8.8.4.4",
  ]);
  await assert.rejects(
    createOutbound({
      ...network,
      lookup: () => new Promise(() => {}),
    }).fetch("https://slow.example/", { ...LIMITS, timeoutMs: 20 }),
    refuses(/within 20 ms/, "url_failed"),
  );
});

Deno.test("redirects are not followed unless asked, and then by the same rules", async () => {
  const to = (location: string) => () => new Response(null, { status: 302, headers: { location } });
  const names = () => ({
    "a.example": [["8.8.8.8"], ["8.8.8.8"], ["8.8.8.8"]],
    "in.example": [["10.0.0.1"]],
  });
  const go = (location: string, redirects: number) => {
    const { network, connected } = named(names(), to(location));
    const response = createOutbound(network).fetch("https://a.example/", { ...LIMITS, redirects });
    return { response, connected };
  };
  const plain = go("https://a.example/b", 0);
  assert.equal((await plain.response).status, 302);
  assert.equal(plain.connected.length, 1);
  const followed = go("/b", 2);
  assert.equal((await followed.response).status, 302);
  assert.equal(
    followed.connected.join(),
    [
      "https://a.example/ at 8.8.8.8",
      "https://a.example/b at 8.8.8.8",
      "https://a.example/b at 8.8.8.8",
    ].join(),
  );
  for (
    const location of ["http://a.example/", "https://127.0.0.1/", "https://in.example/", "https://[::1]/"]
  ) {
    const { response, connected } = go(location, 3);
    await assert.rejects(response, refuses(/expected/), location);
    assert.equal(connected.length, 1);
  }
});

Deno.test("over real connections: the checked address, not the name; time, size and length are held", async () => {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    const { pathname, host } = new URL(request.url);
    if (pathname === "/long") return new Response("x".repeat(2000));
    if (pathname === "/slow") await new Promise((resolve) => setTimeout(resolve, 300));
    return new Response(`${request.method} ${host} ${await request.text()}`);
  });
  const short = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const lying = (async () => {
    const connection = await short.accept();
    await connection.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nno more"));
    connection.close();
  })();
  const port = (it: { addr: Deno.Addr }) => (it.addr as Deno.NetAddr).port;
  const out = createOutbound({ ...network, lookup: () => Promise.resolve(["127.0.0.1"]) }, {
    allowPrivate: true,
  });
  const url = `http://nowhere.invalid:${port(server)}`;
  const sent = await out.fetch(url, { ...LIMITS, method: "POST", body: "hello" });
  assert.equal(new TextDecoder().decode(sent.bytes), `POST nowhere.invalid:${port(server)} hello`);
  await assert.rejects(
    out.fetch(`${url}/long`, LIMITS),
    refuses(/at most 1000 bytes, found more/, "url_failed"),
  );
  assert.equal((await out.fetch(`${url}/long`, { ...LIMITS, maxBytes: 0 })).bytes.length, 0);
  await assert.rejects(
    out.fetch(`${url}/slow`, { ...LIMITS, timeoutMs: 50 }),
    refuses(/within 50 ms/, "url_failed"),
  );
  const signal = AbortSignal.timeout(50);
  await assert.rejects(
    out.fetch(`${url}/slow`, { ...LIMITS, signal }),
    refuses(/caller went away/, "cancelled"),
  );
  await assert.rejects(
    out.fetch(`http://short.invalid:${port(short)}`, LIMITS),
    refuses(/a whole answer/, "url_failed"),
  );
  await lying;
  short.close();
  await assert.rejects(
    out.fetch(`http://gone.invalid:${port(short)}`, LIMITS),
    refuses(/failed/, "url_failed"),
  );
  await server.shutdown();
  const names = await network.lookup("localhost");
  assert.ok(names.length && names.every((it) => !isPublic(it)));
});

Deno.test("https to a chosen address: the certificate must still be the name's", async () => {
  const file = (name: string) => Deno.readTextFileSync(new URL(`../fixtures/tls/${name}`, import.meta.url));
  const [cert, key] = [file("certificate.pem"), file("key.pem")];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {}, cert, key }, (request) => {
    return new Response(null, { status: 204, headers: { "x-url": request.url } });
  });
  const port = (server.addr as Deno.NetAddr).port;
  const ask = (host: string, ca?: string) =>
    createOutbound({ ...createNetwork({ ca }), lookup: () => Promise.resolve(["127.0.0.1"]) }, {
      allowPrivate: true,
    })
      .fetch(`https://${host}:${port}/`, LIMITS);
  const { status, headers } = await ask("nowhere.invalid", cert);
  assert.deepEqual([status, headers.get("x-url")], [204, `https://nowhere.invalid:${port}/`]);
  await assert.rejects(ask("other.invalid", cert), refuses(/a connection that failed/, "url_failed"));
  await assert.rejects(ask("nowhere.invalid"), refuses(/a connection that failed/, "url_failed"));
  await server.shutdown();
});
