import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:net";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { encode } from "../../client/src/frame.js";
import { Evenkeel, gracePeriodS, serve, type Connection, type Hooks } from "../src/index.js";
import { coresOf, Usage } from "../src/usage.js";
import { Farm, atEnd, listen, until, type FarmServer } from "./farm.js";

const echo: Hooks = {
  connection: (connection) => void connection.on("message", (data, binary) => connection.send(data, { binary })),
};

/** Dials; says what became of it. */
function dial(url: string, headers: Record<string, string> = {}, origin?: string) {
  const socket = new WebSocket(url, { headers, ...(origin && { origin }) });
  atEnd(() => socket.terminate());
  const got: string[] = [];
  socket.on("message", (data) => got.push(String(data)));
  const closed = new Promise<string>((resolve) => socket.on("close", (code, reason) => resolve(`${code} ${reason}`)));
  socket.on("error", () => {});
  const opened = new Promise<{ status: number; headers: Record<string, unknown>; body: string }>((resolve) => {
    let headers = {};
    socket.on("upgrade", (response) => (headers = response.headers));
    socket.on("open", () => resolve({ status: 101, headers, body: "" }));
    socket.on("unexpected-response", (_, response) => {
      let body = "";
      response.on("data", (chunk) => (body += chunk));
      response.on("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
  });
  return { socket, got, closed, opened };
}

const reports = ({ said }: FarmServer) => said.filter(({ op }) => op === "report");

describe("a handshake", () => {
  it("is let in with an assignment, in the query or from a gateway, and is told to the node", async () => {
    const farm = await new Farm().start();
    let seen: Connection | undefined;
    const a = await farm.server("a", { connection: (connection) => void (seen = connection) });
    const token = farm.mint("a", { path: "/chat", rid: "r1", sid: "s1" });
    const { status, headers } = await dial(`ws://${a.host}/chat?room=7&_ek=${token}&_ekm=c&x=1`).opened;
    expect([status, headers["evenkeel-conn"]]).toEqual([101, "r1"]);
    expect([seen?.id, seen?.sid, seen?.request.url]).toEqual(["r1", "s1", "/chat?room=7&x=1"]);
    const assignment = farm.mint("a", { path: "/", rid: "r2" });
    expect((await dial(`ws://${a.host}/`, { "Evenkeel-Assignment": assignment }).opened).status).toBe(101);
    expect(seen?.request.headers).not.toHaveProperty("evenkeel-assignment");
    const events = () => a.said.filter(({ op }) => op === "event").flatMap(({ events }) => events);
    await until("both are told", () => events().length === 2);
    expect(events()).toEqual([
      { rid: "r1", state: "connected" },
      { rid: "r2", state: "connected" },
    ]);
  });

  it("is refused before 101 with the reason", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo);
    const b = await farm.server("b", echo);
    const used = farm.mint("a");
    await dial(`ws://${a.host}/?_ek=${used}`).opened;
    const refusals: [string, string][] = [
      [`ws://${a.host}/`, "missing"],
      [`ws://${a.host}/?_ek=word`, "malformed"],
      [`ws://${a.host}/?_ek=${used}`, "replayed"],
      [`ws://${a.host}/other?_ek=${farm.mint("a")}`, "path"],
      [`ws://${a.host}/?_ek=${farm.mint("a", { org: "https://x" })}`, "origin"],
      [`ws://${b.host}/?_ek=${farm.mint("a")}`, "other_server"],
    ];
    for (const [url, why] of refusals) {
      const { status, headers, body } = await dial(url).opened;
      expect([status, JSON.parse(body), headers["cache-control"]]).toEqual([401, { why }, "no-store"]);
    }
    await until("they are counted", () => reports(a).at(-1)?.refused_total === 5);
  });

  it("of a page is taken from allowed origins only, and as the gateway signed it", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { origins: ["https://app.example.com"] });
    const with_ = (org: string | undefined, origin: string) =>
      dial(`ws://${a.host}/?_ek=${farm.mint("a", org ? { org } : {})}`, {}, origin).opened;
    expect((await with_("https://app.example.com", "https://app.example.com")).status).toBe(101);
    expect((await with_(undefined, "https://app.example.com")).status).toBe(401);
    const { status, body } = await with_("https://evil.example.com", "https://evil.example.com");
    expect([status, body]).toEqual([403, '{"why":"origin"}']);
  });

  it("is sent elsewhere while the server empties or is cordoned, but for assignments made before", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo);
    const now = Math.floor(Date.now() / 1000);
    const early = farm.mint("a", { iat: now - 2, exp: now + 28 });
    for (const state of ["draining", "cordoned"]) {
      farm.desire(a, { state, target: 100, moves_per_s: 0 });
      await until(`it is ${state}`, () => a.evenkeel.state === state);
      const late = farm.mint("a", { iat: Math.floor(Date.now() / 1000) + 1, exp: Math.floor(Date.now() / 1000) + 20 });
      for (const query of ["", `?_ek=${late}`, "?_ek=word"]) {
        const { status, headers, body } = await dial(`ws://${a.host}/${query}`).opened;
        expect([status, headers["evenkeel-draining"], headers["retry-after"]]).toEqual([503, "1", "1"]);
        expect(JSON.parse(body)).toEqual({ why: state });
      }
    }
    expect((await dial(`ws://${a.host}/?_ek=${early}`).opened).status).toBe(101);
    farm.desire(a, { state: "active" });
    await until("it is active", () => a.evenkeel.state === "active");
    expect((await dial(`ws://${a.host}/?_ek=${farm.mint("a")}`).opened).status).toBe(101);
  });

  it("that comes to park is sent elsewhere by a server that takes no sessions over, and nothing it says is believed", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const parks = await dial(`ws://${a.host}/?_ekm=${"c".repeat(22)}&_ekc=move&_eks=s1&_ekt=t`).opened;
    expect([parks.status, parks.body]).toEqual([503, '{"why":"no_moves"}']);
    const { headers } = await dial(`ws://${a.host}/?_eks=s%0d%0a1&_ekm=short`, { "Evenkeel-Conn": "g1-77" }).opened;
    expect(headers["evenkeel-conn"]).toBe("g1-77");
    expect(a.said[0]).toMatchObject({ op: "hello", caps: [] });
  });

  it("is sent elsewhere before there are keys to check it with", async () => {
    const http = createServer();
    const host = await listen(http);
    const evenkeel = new Evenkeel({ id: "a", url: `ws://${host}`, nodes: [] });
    atEnd(() => evenkeel.stop());
    serve(evenkeel, http, echo);
    const { status, headers, body } = await dial(`ws://${host}/?_ek=x.y.z`).opened;
    expect([status, headers["evenkeel-draining"], body]).toEqual([503, "1", '{"why":"starting"}']);
  });

  it("of a foreign page is refused where everybody is admitted, of an own one not", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const statuses = ["https://evil.example.com", "null", "nonsense", `http://${a.host}`, `https://${a.host}`].map(
      async (origin) => (await dial(`ws://${a.host}/`, {}, origin).opened).status,
    );
    expect(await Promise.all(statuses)).toEqual([403, 403, 403, 101, 101]);
  });

  it("that is admitted and comes to nothing is told as expired", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo);
    const token = farm.mint("a", { rid: "r1" });
    const socket = connect(Number(a.host.split(":")[1]), "127.0.0.1");
    // A handshake that is none.
    socket.end(`GET /?_ek=${token} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n`);
    const events = () => a.said.filter(({ op }) => op === "event").flatMap(({ events }) => events);
    await until("it is told", () => events().length === 1);
    expect(events()).toEqual([{ rid: "r1", state: "expired" }]);
  });

  it("is let in without an assignment where that is wanted, and answered 404 on another path", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all", path: "/chat" });
    const { socket, opened, got } = dial(`ws://${a.host}/chat?x=1`);
    expect((await opened).status).toBe(101);
    // One that came with an assignment still settles its placement.
    await dial(`ws://${a.host}/chat?_ek=${farm.mint("a", { path: "/chat", rid: "r9" })}`).opened;
    await until("it is told", () => a.said.some(({ op, events }) => op === "event" && JSON.stringify(events).includes("r9")));
    expect((await dial(`ws://${a.host}/chat?_ek=nonsense`).opened).status).toBe(101);
    socket.send("hello");
    await until("it is echoed", () => got.length === 1);
    expect((await dial(`ws://${a.host}/other`).opened).status).toBe(404);
    expect((await dial(`ws://${a.host}/chatter`).opened).status).toBe(404);
  });
});

describe("the agent", () => {
  it("reports counts, measures and the application's own terms", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", { ...echo, detach: () => "" }, { admit: "all", capacity: 50, zone: "z", labels: { v: "2" } });
    a.evenkeel.setTerm("queue", 0.25);
    const plain = dial(`ws://${a.host}/`);
    await plain.opened;
    await dial(`ws://${a.host}/?_ekm=${"c".repeat(22)}&_eks=s1`).opened;
    // Without a name of its session both ends know, it could not be handed over.
    await dial(`ws://${a.host}/?_ekm=${"d".repeat(22)}`).opened;
    await until("all are reported", () => reports(a).some(({ connections }) => connections === 3));
    await until("the term is reported", () => reports(a).some(({ custom }) => custom !== undefined));
    const report = reports(a).at(-1)!;
    expect(report).toMatchObject({ connections: 3, movable: 1, custom: { queue: 0.25 }, accepted_total: 3 });
    for (const share of [report.cpu, report.memory]) expect(share).toSatisfy((value: number) => value >= 0 && value <= 1);
    expect(report.lag_ms).toBeGreaterThanOrEqual(0);
    expect(a.said[0]).toMatchObject({ op: "hello", ver: 1, id: "a", capacity: 50, zone: "z", labels: { v: "2" }, caps: ["move"] });
    plain.socket.terminate();
    await until("the end is counted", () => reports(a).at(-1)?.closed_abnormal_total === 1);
    a.evenkeel.setTerm("queue", undefined);
    await until("the term is gone", () => reports(a).at(-1)?.custom === undefined);
  });

  it("closes clients that know no moves at the pace it is told, and says when it is empty", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const clients = Array.from({ length: 20 }, () => dial(`ws://${a.host}/`));
    await Promise.all(clients.map(({ opened }) => opened));
    const started = Date.now();
    farm.desire(a, { state: "draining", target: 0, moves_per_s: 40 });
    const codes = await Promise.all(clients.map(({ closed }) => closed));
    expect(new Set(codes)).toEqual(new Set(["1012 ek:draining"]));
    // Twenty at forty a second, of which one may go at once.
    expect(Date.now() - started).toBeGreaterThanOrEqual(19 * 25 - 30);
    await until("it says drained", () => a.said.some(({ op }) => op === "drained"));
  });

  it("sheds down to a target, idle clients first, and leaves young ones alone unless an operator asks", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const clients = Array.from({ length: 6 }, () => dial(`ws://${a.host}/`));
    await Promise.all(clients.map(({ opened }) => opened));
    farm.desire(a, { state: "active", target: 2 });
    await until("it is applied", () => a.said.some(({ op }) => op === "applied"));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(a.evenkeel.connections).toBe(6);
    const [busy] = clients.slice(0, 1);
    busy?.socket.send("x");
    await until("one is busy", () => busy?.got.length === 1);
    farm.desire(a, { state: "active", target: 2, deadline_ms: 60_000 });
    await until("four have left", () => a.evenkeel.connections === 2);
    expect(busy?.socket.readyState).toBe(WebSocket.OPEN);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(a.evenkeel.connections).toBe(2);
  });

  it("takes the life that a node says is next, and checks assignments for that one", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo);
    const old = farm.mint("a");
    const { inc } = a.said[0] as unknown as { inc: number };
    a.tell({ op: "stale", known: inc + 5 });
    await until("it says hello again", () => a.said.some((each) => each.op === "hello" && each.inc === inc + 6));
    await until("it is linked", () => a.evenkeel.isLinked && reports(a).at(-1)?.inc === inc + 6);
    expect((await dial(`ws://${a.host}/?_ek=${old}`).opened).body).toBe('{"why":"other_server"}');
    expect((await dial(`ws://${a.host}/?_ek=${farm.mint("a")}`).opened).status).toBe(101);
  });

  it("ends when the nodes want it to and nobody is left", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const client = dial(`ws://${a.host}/`);
    await client.opened;
    farm.desire(a, { state: "stopped", target: 0 });
    await a.evenkeel.finished;
    expect(await client.closed).toBe("1012 ek:stopped");
  });

  it("goes on trying where the token is wrong, and takes a better one", async () => {
    const farm = await new Farm().start();
    const log: string[] = [];
    let token = "wrong";
    const evenkeel = new Evenkeel({
      id: "a",
      url: "ws://127.0.0.1:1",
      nodes: [farm.node],
      token: () => token,
      log: ({ message, fields }) => log.push(`${message}: ${fields.reason}`),
    });
    atEnd(() => evenkeel.stop());
    await until("it was refused", () => log.length > 0);
    token = "secret";
    await until("it is linked", () => farm.hellos.includes("a"));
    expect(log).toEqual(["agent link ended: refused with HTTP status 401"]);
  });
});

describe("a connection that is handed over", () => {
  const CTL = "c".repeat(22);
  const frame = (message: object) => encode(CTL, message as never);
  const op = (text: string | undefined) => JSON.parse(text?.slice(text.indexOf("{")) ?? "{}");

  /** A client on its old server, ordered away. */
  async function ordered(hooks: Hooks) {
    const farm = await new Farm().start();
    const a = await farm.server("a", hooks, { admit: "all" });
    const client = dial(`ws://${a.host}/?_ekm=${CTL}&_eks=s1`);
    await client.opened;
    farm.drain(a);
    await until("it got its notice", () => client.got.length === 1);
    return { farm, a, client, notice: op(client.got[0]) as { mid: string; ticket: string; by_ms: number; why: string } };
  }

  it("gets its notice with a ticket of its session", async () => {
    const { a, notice } = await ordered({ connection: () => {}, detach: () => "" });
    expect(notice).toMatchObject({ op: "move", by_ms: 10_000, why: "draining" });
    expect(a.evenkeel.handover.checkTicket(notice.ticket, Date.now())).toMatchObject({ sid: "s1", source: "a" });
  });

  it("is told at once that there is no state where the application fails or hands over too much", async () => {
    for (const detach of [() => Promise.reject(new Error("no")), () => Buffer.alloc(16 * 1024 + 1)]) {
      const { client, notice } = await ordered({ connection: () => {}, detach });
      client.socket.send(frame({ op: "cut", mid: notice.mid, at: "b#1" }));
      expect(await client.closed).toBe("1012 ek:timed_out");
      expect(client.got).toHaveLength(1);
    }
  });

  it("gets everything that was sent before the state, and the state goes only where it was sealed for", async () => {
    const hooks: Hooks = {
      connection: (connection) => void connection.on("message", (data) => connection.send(`echo ${data}`)),
      detach: async (connection) => {
        connection.send("last");
        await new Promise((resolve) => setTimeout(resolve, 20));
        connection.send("very last");
        return "here";
      },
    };
    const { farm, a, client, notice } = await ordered(hooks);
    const states: string[] = [];
    const taking: Hooks = {
      connection: (connection, state) => (states.push(String(state)), connection.send("welcome")),
      detach: () => "",
    };
    const b = await farm.server("b", taking, { admit: "all" });
    const c = await farm.server("c", taking, { admit: "all" });
    const park = async ({ host }: FarmServer) => {
      const parked = dial(`ws://${host}/?_ekm=${CTL}&_ekc=move&_eks=s1&_ekt=${notice.ticket}`);
      await parked.opened;
      parked.socket.send(frame({ op: "park", sid: "s1", mid: notice.mid }));
      await until("it is parked", () => parked.got.length === 1);
      return parked;
    };
    const [right, wrong] = [await park(b), await park(c)];
    expect([b.evenkeel.connections, states]).toEqual([0, []]);
    client.socket.send("before");
    client.socket.send(frame({ op: "cut", mid: notice.mid, at: op(right.got[0]).at }));
    client.socket.send("after");
    expect(await client.closed).toBe("1012 ek:moved");
    expect(client.got.slice(1, 4)).toEqual(["echo before", "last", "very last"]);
    const { state } = op(client.got[4]);
    expect(state).not.toContain("here");
    for (const parked of [wrong, right]) parked.socket.send(frame({ op: "resume", sid: "s1", mid: notice.mid, state }));
    expect(await wrong.closed).toBe("1008 ek:forbidden");
    expect(op(wrong.got[1])).toMatchObject({ op: "nak", why: "refused" });
    await until("it is resumed", () => right.got.length === 3);
    expect([op(right.got[1]).op, right.got[2], states]).toEqual(["resumed", "welcome", ["here"]]);
    await until("the source is empty", () => a.evenkeel.connections === 0);
    // The state is good once.
    const again = await park(b);
    again.socket.send(frame({ op: "resume", sid: "s1", mid: notice.mid, state }));
    expect(await again.closed).toBe("1008 ek:forbidden");
  });

  it("is closed in its turn where it does not answer or will not go", async () => {
    const { a, client, notice } = await ordered({ connection: () => {}, detach: () => "" });
    let answered = 0;
    client.socket.on("message", (text) => {
      answered += 1;
      client.socket.send(frame({ op: "nak", mid: op(String(text)).mid, why: "busy" }));
    });
    // Without credit anywhere it is asked again, as often as it takes.
    client.socket.send(frame({ op: "nak", mid: notice.mid, why: "unreachable", retry_ms: 10 }));
    expect(await client.closed).toBe("1012 ek:draining");
    expect(answered).toBe(3);
    expect(a.said.filter(({ op }) => op === "moved").map(({ result, why }) => `${result} ${why}`)).toEqual([
      "nak unreachable",
      "nak busy",
      "nak busy",
      "nak busy",
    ]);
  });

  it("is closed where the application marked it, or cannot hand over at all", async () => {
    for (const hooks of [{ connection: (connection: Connection) => void (connection.movable = false), detach: () => "" }, echo]) {
      const farm = await new Farm().start();
      const a = await farm.server("a", hooks, { admit: "all" });
      const client = dial(`ws://${a.host}/?_ekm=${CTL}&_eks=s1`);
      await client.opened;
      farm.drain(a);
      expect(await client.closed).toBe("1012 ek:draining");
    }
  });
});

describe("an application", () => {
  it("that fails to take a client has it closed, and what it sent to one that is gone comes back", async () => {
    const farm = await new Farm().start();
    const failing = await farm.server("a", { connection: () => Promise.reject(new Error("no")) }, { admit: "all" });
    expect(await dial(`ws://${failing.host}/`).closed).toBe("1011 ");
    let seen: Connection | undefined;
    const unsent: unknown[] = [];
    const b = await farm.server("b", { connection: (connection) => void (seen = connection) }, { admit: "all" });
    const client = dial(`ws://${b.host}/`);
    await client.opened;
    seen?.on("unsent", (data) => unsent.push(data));
    seen?.close(4000, "enough");
    seen?.send("late");
    expect([await client.closed, unsent, client.got]).toEqual(["4000 enough", ["late"], []]);
  });

  it("leaves on SIGTERM: admits nobody, has clients go at a pace, and knows when they are gone", async () => {
    const farm = await new Farm().start();
    const a = await farm.server("a", echo, { admit: "all" });
    const clients = Array.from({ length: 20 }, () => dial(`ws://${a.host}/`));
    await Promise.all(clients.map(({ opened }) => opened));
    const started = Date.now();
    const left = a.evenkeel.leave({ perSecond: 100 });
    expect((await dial(`ws://${a.host}/`).opened).status).toBe(503);
    expect(await left).toBe(0);
    expect(Date.now() - started).toBeGreaterThanOrEqual(19 * 10 - 10);
    expect(new Set(await Promise.all(clients.map(({ closed }) => closed)))).toEqual(new Set(["1012 ek:stopped"]));
    // Nobody changes its mind.
    farm.desire(a, { state: "active" });
    await until("it is applied", () => a.said.some(({ op }) => op === "applied"));
    expect((await dial(`ws://${a.host}/`).opened).status).toBe(503);
  });

  it("knows how long that takes", () => {
    expect(gracePeriodS(5_000, 50)).toBe(120);
    expect(gracePeriodS(1, 50)).toBe(21);
  });

  it("is told of settings that cannot be", () => {
    expect(() => new Evenkeel({ id: "a b", url: "ws://x", nodes: [] })).toThrow(TypeError);
    expect(() => new Evenkeel({ id: "a", url: "ws://x", nodes: ["http://1", "http://2", "http://3"] })).toThrow(TypeError);
  });
});

describe("usage", () => {
  it("is a share of the quota of the process's control group, of either version, else of the cores", () => {
    const root = mkdtempSync(join(tmpdir(), "evenkeel-usage-"));
    const file = (path: string, text: string) => {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), text);
    };
    try {
      expect(coresOf(root)).toBe(availableParallelism());
      file("proc/self/cgroup", "0::/pod/main\n");
      file("sys/fs/cgroup/pod/main/cpu.max", "max 100000\n");
      expect(coresOf(root)).toBe(availableParallelism());
      file("sys/fs/cgroup/pod/cpu.max", "50000 100000\n");
      expect(coresOf(root)).toBe(0.5);
      file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
      file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
      expect(coresOf(root)).toBe(0.5);
      file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n");
      expect(coresOf(root)).toBe(0.25);
    } finally {
      rmSync(root, { recursive: true });
    }
  });

  it("shows a busy event loop", async () => {
    const usage = new Usage();
    atEnd(() => usage.stop());
    expect(usage.measure().cpu).toBeUndefined();
    await new Promise((resolve) => setTimeout(resolve, 30));
    const until = performance.now() + 200;
    while (performance.now() < until);
    await new Promise((resolve) => setTimeout(resolve, 30));
    const { cpu, memory, lag_ms } = usage.measure();
    expect(cpu).toBeGreaterThan(0.3);
    expect(memory).toBeGreaterThan(0);
    expect(lag_ms).toBeGreaterThan(5);
  });
});
