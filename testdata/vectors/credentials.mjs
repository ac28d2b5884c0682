// Makes token.json, ticket.json and seal.json beside it, with nothing but the crypto of Node: what Evenkeel signs and
// seals is then checked against a second implementation. Run it after a change of the format: node credentials.mjs
import { createCipheriv, createHmac, hkdfSync } from 'node:crypto';
import { writeFileSync } from 'node:fs';

const b64 = (data) => Buffer.from(data).toString('base64url');
const json = (value) => b64(typeof value === 'string' ? value : JSON.stringify(value));
const derive = (secret, info) => Buffer.from(hkdfSync('sha256', secret, Buffer.alloc(0), Buffer.from(info), 32));
const bytes = (from, length) => Buffer.from(Array.from({ length }, (_, i) => (from + i) % 256));

const DAY = 86_400_000;
const day = 20_417;
// Noon of that day, and a second that is not whole.
const now_ms = day * DAY + 43_200_250;
const now = Math.floor(now_ms / 1000);
const master = bytes(0, 32);
const [fleet, server, inc] = ['chat', 'chat-1', 1_763_990_000_000];
const aud = `${server}#${inc}`;

const tokenKey = (who = aud, period = day, from = master) => derive(from, `evenkeel/assignment/1\0${who}\0${period}`);
const moveKey = (who = fleet, period = day, from = master) => derive(from, `evenkeel/move/1\0${who}\0m${period}`);
const ticketKey = (...args) => derive(moveKey(...args), 'evenkeel/ticket/1');

const jws = (key, payload, header) => {
  const signed = `${json(header)}.${typeof payload === 'string' || Buffer.isBuffer(payload) ? b64(payload) : json(payload)}`;
  return `${signed}.${createHmac('sha256', key).update(signed).digest('base64url')}`;
};
const head = (kid) => ({ alg: 'HS256', typ: 'JWT', kid: `${kid}` });
const hmacOf = (algorithm, key, signed) => createHmac(algorithm, key).update(signed).digest('base64url');

// --- token.json -----------------------------------------------------------------------------------------------

const claims = (changes = {}) => {
  const all = {
    aud, iat: now, exp: now + 30, jti: b64(bytes(100, 16)), rid: 'g1-7', sid: b64(bytes(150, 16)),
    path: '/chat/room', org: 'https://app.example.com', cause: 'start', caps: ['move'], ...changes,
  };
  for (const name of Object.keys(all)) if (all[name] === undefined) delete all[name];
  return all;
};
const token = (changes, { key = tokenKey(), kid = day } = {}) => jws(key, claims(changes), head(kid));
const ask = { path: '/chat/room', origin: 'https://app.example.com', now_ms };
const good = token();
const [goodHead, goodPayload, goodSignature] = good.split('.');
const withHeader = (header, key = tokenKey()) => jws(key, claims(), header);
const withText = (text) => jws(tokenKey(), text, head(day));
const text = (changes) => JSON.stringify(claims(changes));
// The same bytes with bits left over in the last character: a lax reader takes it, and it is another string.
const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
const leftOver = (part) => part.slice(0, -1) + alphabet[alphabet.indexOf(part.at(-1)) ^ 1];
const minted = {
  'an assignment for a browser': claims(),
  'without Origin, capabilities and session before': claims({ org: undefined, caps: [], cause: 'lost' }),
  'letters that JSON has to escape': claims({ path: '/räum/"\\', sid: 'a\u0001b', cause: 'move' }),
};

const accept = [
  ['as minted', { token: good }],
  ['signed by the key of the day before', { token: token({}, { key: tokenKey(aud, day - 1), kid: day - 1 }) }],
  ['without Origin on both sides', { token: token({ org: undefined }), origin: null }],
  ['org null is org absent', { token: token({ org: null }), origin: null }],
  ['the last moment of the leeway', { token: good, now_ms: (now + 35) * 1000 - 1 }],
  ['the first moment of the leeway', { token: good, now_ms: (now - 5) * 1000 }],
  ['claims nobody knows', { token: token({ nbf: 'later', x: { y: [1] } }) }],
  ['a cause nobody knows is a start', { token: token({ cause: 'boredom' }), means: { cause: 'start' } }],
  ['cause and caps may be absent', { token: token({ cause: undefined, caps: undefined }), means: { cause: 'start', caps: [] } }],
  ['whole numbers written as floats', { token: withText(text().replace(`"exp":${now + 30}`, `"exp":${now + 30}.0`)) }],
  ['a claim that is there twice: the last counts', { token: withText(text().replace('"path"', '"path":"/other","path"')) }],
  ['a copy that failed does not use it up', { token: good, before: [`${goodHead}.${goodPayload}.${goodSignature.slice(0, -2)}AA`] }],
  ['a refused path does not use it up', { token: good, before: [{ token: good, path: '/other' }] }],
  ['another one before it', { token: good, before: [token({ jti: 'another' })] }],
];

const refuse = [
  ['nothing', 'missing', { token: '' }],
  ['one MiB', 'too_long', { token: { text: 'A', times: 1_048_576 } }],
  ['one byte too long', 'too_long', { token: { text: 'A', times: 2_049 } }],
  ['a long path makes it too long', 'too_long', { token: token({ path: `/${'x'.repeat(1_400)}` }) }],
  ['a word', 'malformed', { token: 'token' }],
  ['only dots', 'malformed', { token: '..' }],
  ['two dots missing', 'malformed', { token: good.replaceAll('.', '') }],
  ['a part missing', 'malformed', { token: `${goodHead}.${goodPayload}` }],
  ['a part too many', 'malformed', { token: `${good}.` }],
  ['five parts, as of a JWE', 'malformed', { token: `${goodHead}..${goodPayload}.${goodPayload}.${goodSignature}` }],
  ['padding', 'malformed', { token: `${good}=` }],
  ['a space behind', 'malformed', { token: `${good} ` }],
  ['a line end inside', 'malformed', { token: `${goodHead}\n.${goodPayload}.${goodSignature}` }],
  ['the letters of plain base64', 'malformed', { token: `${goodHead}.${goodPayload}.${goodSignature.slice(0, -2)}+/` }],
  ['bits left over', 'malformed', { token: `${goodHead}.${goodPayload}.${leftOver(goodSignature)}` }],
  ['percent-encoded', 'malformed', { token: good.replaceAll('.', '%2E') }],
  ['a null byte', 'malformed', { token: `${good}\0` }],
  ['letters outside ASCII', 'malformed', { token: `${goodHead}.${goodPayload}.ä` }],
  ['a header that is no JSON', 'malformed', { token: `${b64('header')}.${goodPayload}.${goodSignature}` }],
  ['a header that is an array', 'malformed', { token: withHeader([head(day)]) }],
  ['a header of nested arrays', 'malformed', { token: jws(tokenKey(), claims(), '['.repeat(300) + ']'.repeat(300)) }],
  ['a header that is not UTF-8', 'malformed', { token: `${b64(Buffer.from([123, 255, 125]))}.${goodPayload}.${goodSignature}` }],
  ['alg none', 'algorithm', { token: `${json({ alg: 'none', typ: 'JWT', kid: `${day}` })}.${goodPayload}.` }],
  ['alg None with a signature', 'algorithm', { token: withHeader({ ...head(day), alg: 'None' }) }],
  ['no alg', 'algorithm', { token: withHeader({ typ: 'JWT', kid: `${day}` }) }],
  ['alg RS256', 'algorithm', { token: withHeader({ ...head(day), alg: 'RS256' }) }],
  ['alg HS512, rightly signed', 'algorithm', (() => {
    const signed = `${json({ ...head(day), alg: 'HS512' })}.${goodPayload}`;
    return { token: `${signed}.${hmacOf('sha512', tokenKey(), signed)}` };
  })()],
  ['alg is a list', 'algorithm', { token: withHeader({ ...head(day), alg: ['HS256'] }) }],
  ['alg twice, the last none', 'algorithm', { token: jws(tokenKey(), claims(), `{"alg":"HS256","alg":"none","typ":"JWT","kid":"${day}"}`) }],
  ['critical extensions', 'malformed', { token: withHeader({ ...head(day), crit: ['exp'] }) }],
  ['another typ', 'malformed', { token: withHeader({ ...head(day), typ: 'JWE' }) }],
  ['no kid', 'unknown_key', { token: withHeader({ alg: 'HS256', typ: 'JWT' }) }],
  ['kid is a number', 'unknown_key', { token: withHeader({ ...head(day), kid: day }) }],
  ['unknown kid', 'unknown_key', { token: token({}, { kid: 'k1' }) }],
  ['kid of a file', 'unknown_key', { token: token({}, { key: Buffer.alloc(0), kid: '../../dev/null' }) }],
  ['old key', 'unknown_key', { token: token({}, { key: tokenKey(aud, day - 2), kid: day - 2 }) }],
  ['a key of tomorrow', 'unknown_key', { token: token({}, { key: tokenKey(aud, day + 1), kid: day + 1 }) }],
  ['a move key', 'unknown_key', { token: token({}, { key: moveKey(), kid: `m${day}` }) }],
  ['another server', 'other_server', (() => {
    const other = `chat-2#${inc}`;
    return { token: token({ aud: other }, { key: tokenKey(other) }) };
  })()],
  ['another server, signed with the key of this one', 'other_server', { token: token({ aud: `chat-2#${inc}` }) }],
  ['a former life of the server', 'other_server', (() => {
    const other = `${server}#${inc - 1}`;
    return { token: token({ aud: other }, { key: tokenKey(other) }) };
  })()],
  ['other fleet', 'signature', { token: token({}, { key: tokenKey(aud, day, bytes(32, 32)) }) }],
  ['the master key itself as the key', 'signature', { token: token({}, { key: master }) }],
  ['the key of an empty text', 'signature', { token: token({}, { key: Buffer.alloc(0) }) }],
  ['the key of yesterday under the kid of today', 'signature', { token: token({}, { key: tokenKey(aud, day - 1) }) }],
  ['altered claims', 'signature', { token: `${goodHead}.${json(claims({ exp: now + 29 }))}.${goodSignature}` }],
  ['no signature', 'signature', { token: `${goodHead}.${goodPayload}.` }],
  ['half a signature', 'signature', { token: `${goodHead}.${goodPayload}.${goodSignature.slice(0, 20)}` }],
  ['truncated claims', 'signature', { token: `${goodHead}.${goodPayload.slice(0, 40)}.${goodSignature}` }],
  ['claims that are not UTF-8', 'malformed', { token: jws(tokenKey(), Buffer.from([0x7b, 0xff, 0xfe, 0x7d]), head(day)) }],
  ['no claims', 'malformed', { token: withText('') }],
  ['claims that are a text', 'malformed', { token: withText('"claims"') }],
  ['claims that are null', 'malformed', { token: withText('null') }],
  ['something behind the claims', 'malformed', { token: withText(`${text()}{}`) }],
  ['aud is a list', 'malformed', { token: token({ aud: [aud] }) }],
  ['aud without life', 'malformed', { token: token({ aud: server }) }],
  ['no aud', 'malformed', { token: token({ aud: undefined }) }],
  ['string exp', 'malformed', { token: token({ exp: `${now + 30}` }) }],
  ['no exp', 'malformed', { token: token({ exp: undefined }) }],
  ['exp is an object', 'malformed', { token: token({ exp: { a: [now + 30] } }) }],
  ['half a second', 'malformed', { token: token({ exp: now + 29.5 }) }],
  ['negative iat', 'malformed', { token: token({ iat: -1 }) }],
  ['negative exp', 'malformed', { token: token({ exp: -30 }) }],
  ['exp beyond what a float holds', 'malformed', { token: withText(text().replace(`"exp":${now + 30}`, '"exp":18446744073709551616')) }],
  ['exp before iat', 'malformed', { token: token({ exp: now - 1 }) }],
  ['no jti', 'malformed', { token: token({ jti: undefined }) }],
  ['an empty jti', 'malformed', { token: token({ jti: '' }) }],
  ['a jti of 129 bytes', 'malformed', { token: token({ jti: 'x'.repeat(129) }) }],
  ['rid is a number', 'malformed', { token: token({ rid: 7 }) }],
  ['sid is null', 'malformed', { token: token({ sid: null }) }],
  ['no path', 'malformed', { token: token({ path: undefined }) }],
  ['org is a boolean', 'malformed', { token: token({ org: true }) }],
  ['caps is a text', 'malformed', { token: token({ caps: 'move' }) }],
  ['caps of numbers', 'malformed', { token: token({ caps: [1] }) }],
  ['cause is a number', 'malformed', { token: token({ cause: 1 }) }],
  ['31 seconds of life', 'too_long_lived', { token: token({ exp: now + 31 }) }],
  ['good for ever', 'too_long_lived', { token: token({ iat: 0, exp: now + 30 }) }],
  ['from the future', 'not_yet', { token: token({ iat: now + 6, exp: now + 36 }) }],
  ['expired', 'expired', { token: token({ iat: now - 66, exp: now - 36 }) }],
  ['expired at the end of the leeway', 'expired', { token: good, now_ms: (now + 35) * 1000 }],
  ['exp twice, the last expired', 'expired', { token: withText(text({ iat: now - 34, exp: now - 6 }).replace('"exp"', `"exp":${now - 4},"exp"`)) }],
  ['wrong path', 'path', { token: good, path: '/chat/other' }],
  ['a longer path', 'path', { token: good, path: '/chat/room/' }],
  ['the same path in another spelling', 'path', { token: good, path: '/chat/r%6Fom' }],
  ['the same path in capitals', 'path', { token: good, path: '/Chat/Room' }],
  ['wrong origin', 'origin', { token: good, origin: 'https://evil.example.com' }],
  ['the origin without Origin', 'origin', { token: good, origin: null }],
  ['an Origin without org', 'origin', { token: token({ org: undefined }) }],
  ['the opaque origin', 'origin', { token: good, origin: 'null' }],
  ['replay', 'replayed', { token: good, before: [good] }],
  ['the same jti in another token', 'replayed', { token: token({ rid: 'g1-8' }), before: [good] }],
  ['replay at the last moment', 'replayed', { token: good, before: [good], now_ms: (now + 35) * 1000 - 1 }],
  ['no room to remember it', 'replay_full', { token: good, replays: 2, before: [token({ jti: 'a' }), token({ jti: 'b' })] }],
];

const attempt = (one) => (typeof one === 'string' ? { token: one } : one);
const write = (name, value) => writeFileSync(new URL(name, import.meta.url), `${JSON.stringify(value, null, 2)}\n`);

write('token.json', {
  about:
    'Assignments of one life of one server. `keys`: what its agent holds (the live list as sent, and what the master key and those names must give). `mint`: claims and the token they give under the key of that kid. `accept` and `refuse`: one attempt each with a new verifier that remembers `replays` tokens, after the attempts in `before` (whose outcome does not matter; a bare text is a token with the path, origin and time of `ask`); fields that are absent are those of `ask`, origin null is no Origin. `why`: the reason. `means`: claims read. A token may be {text, times}: that text so many times.',
  master: b64(master), fleet, server, inc, ask,
  keys: [
    ...[day - 1, day].map((period) => ({ kty: 'oct', kid: `${period}`, alg: 'HS256', k: b64(tokenKey(aud, period)) })),
    ...[day - 1, day].map((period) => ({ kty: 'oct', kid: `m${period}`, alg: 'A256GCM', k: b64(moveKey(fleet, period)) })),
  ],
  mint: Object.entries(minted).map(([name, all]) => ({ name, kid: `${day}`, claims: all, token: jws(tokenKey(), all, head(day)) })),
  accept: accept.map(([name, rest]) => ({ name, ...rest, before: rest.before?.map(attempt) })),
  refuse: refuse.map(([name, why, rest]) => ({ name, why, ...rest, before: rest.before?.map(attempt) })),
});

// --- ticket.json ----------------------------------------------------------------------------------------------

const ticket = (changes = {}, { key = ticketKey(), kid = `m${day}` } = {}) =>
  jws(key, { sid: 's-1', source: 'chat-1', exp: now + 600, ...changes }, head(kid));
const goodTicket = ticket();

write('ticket.json', {
  about:
    'Tickets of one fleet. `keys`: move keys, older first; the key that signs is derived from one with `info`. `mint`: a ticket and its text under the key of that kid (the order of the claims is free). `accept` and `refuse` as in token.json.',
  master: b64(master), fleet, now_ms, info: 'evenkeel/ticket/1',
  keys: [day - 1, day].map((period) => ({ kty: 'oct', kid: `m${period}`, alg: 'A256GCM', k: b64(moveKey(fleet, period)) })),
  ticket_keys: [day - 1, day].map((period) => ({ kid: `m${period}`, k: b64(ticketKey(fleet, period)) })),
  mint: [
    { name: 'ten minutes', kid: `m${day}`, ticket: { sid: 's-1', source: 'chat-1', exp: now + 600 }, text: jws(ticketKey(), { exp: now + 600, sid: 's-1', source: 'chat-1' }, head(`m${day}`)) },
  ],
  accept: [
    { name: 'as minted', text: goodTicket, means: { sid: 's-1', source: 'chat-1', exp: now + 600 } },
    { name: 'signed by the key of the day before', text: ticket({}, { key: ticketKey(fleet, day - 1), kid: `m${day - 1}` }) },
    { name: 'the last moment of the leeway', text: goodTicket, now_ms: (now + 605) * 1000 - 1 },
    { name: 'claims nobody knows', text: ticket({ iat: 'x' }) },
  ],
  refuse: [
    { name: 'nothing', why: 'missing', text: '' },
    { name: 'too long', why: 'too_long', text: ticket({ sid: 'x'.repeat(1_000) }) },
    { name: 'a word', why: 'malformed', text: 'ticket' },
    { name: 'alg none', why: 'algorithm', text: `${json({ alg: 'none', typ: 'JWT', kid: `m${day}` })}.${goodTicket.split('.')[1]}.` },
    { name: 'an old key', why: 'unknown_key', text: ticket({}, { key: ticketKey(fleet, day - 2), kid: `m${day - 2}` }) },
    { name: 'a token key', why: 'unknown_key', text: ticket({}, { key: tokenKey(), kid: `${day}` }) },
    { name: 'the move key itself', why: 'signature', text: ticket({}, { key: moveKey() }) },
    { name: 'another fleet', why: 'signature', text: ticket({}, { key: ticketKey('game') }) },
    { name: 'altered', why: 'signature', text: goodTicket.replace(goodTicket.split('.')[1], json({ sid: 's-2', source: 'chat-1', exp: now + 600 })) },
    { name: 'no sid', why: 'malformed', text: ticket({ sid: undefined }) },
    { name: 'a source that is no id', why: 'malformed', text: ticket({ source: 'a b' }) },
    { name: 'string exp', why: 'malformed', text: ticket({ exp: `${now + 600}` }) },
    { name: 'too long a life', why: 'too_long_lived', text: ticket({ exp: now + 606 }) },
    { name: 'expired', why: 'expired', text: goodTicket, now_ms: (now + 605) * 1000 },
  ],
});

// --- seal.json ------------------------------------------------------------------------------------------------

const nonce = bytes(200, 12);
const jweHead = (kid = `m${day}`) => ({ alg: 'dir', enc: 'A256GCM', kid });
const jwe = (payload, { key = moveKey(), header = jweHead(), iv = nonce } = {}) => {
  const protectedHeader = json(header);
  const cipher = createCipheriv('aes-256-gcm', key, iv, { authTagLength: 16 }).setAAD(Buffer.from(protectedHeader));
  const sealed = Buffer.concat([cipher.update(typeof payload === 'string' ? payload : JSON.stringify(payload)), cipher.final()]);
  return [protectedHeader, '', b64(iv), b64(sealed), b64(cipher.getAuthTag())].join('.');
};
const at = `chat-2#${inc}`;
// The order of names that `JSON` objects sorted by name have.
const inside = (changes = {}) => ({ at, exp: now + 10, mid: 'm-1', sid: 's-1', state: b64('cursor 42'), ...changes });
const sealed = jwe(inside());
const parts = sealed.split('.');
const replace = (index, part) => parts.map((old, i) => (i === index ? part : old)).join('.');

write('seal.json', {
  about:
    'Sealed states of one fleet. `keys`: move keys. `seal`: what is sealed with that nonce under the key of that kid at `now_ms`, and the text it gives (the payload has its names in alphabetical order here; any order is right). `accept` and `refuse`: a new opener for `ask.at` is given the text for the session and move of `ask`, after those in `before`. `state` is base64url. A text may be {text, times}.',
  master: b64(master), fleet, ask: { at, sid: 's-1', mid: 'm-1', now_ms },
  keys: [day - 1, day].map((period) => ({ kty: 'oct', kid: `m${period}`, alg: 'A256GCM', k: b64(moveKey(fleet, period)) })),
  seal: [
    { name: 'a state', kid: `m${day}`, sid: 's-1', mid: 'm-1', at, state: b64('cursor 42'), nonce: b64(nonce), text: sealed },
    { name: 'an empty state', kid: `m${day}`, sid: 's-1', mid: 'm-1', at, state: '', nonce: b64(nonce), text: jwe(inside({ state: '' })) },
  ],
  accept: [
    { name: 'as sealed', text: sealed, state: b64('cursor 42') },
    { name: 'empty', text: jwe(inside({ state: '' })), state: '' },
    { name: 'under the key of the day before', text: jwe(inside(), { key: moveKey(fleet, day - 1), header: jweHead(`m${day - 1}`) }), state: b64('cursor 42') },
    { name: 'names nobody knows', text: jwe(inside({ x: 1 })), state: b64('cursor 42') },
    { name: 'the last moment of the leeway', text: sealed, now_ms: (now + 15) * 1000 - 1, state: b64('cursor 42') },
    { name: 'the state of another move before it', text: sealed, before: [{ text: jwe(inside({ mid: 'm-0' })), mid: 'm-0' }], state: b64('cursor 42') },
    { name: 'a copy that failed does not use it up', text: sealed, before: [{ text: sealed, sid: 's-2' }], state: b64('cursor 42') },
  ],
  refuse: [
    { name: 'nothing', why: 'missing', text: '' },
    { name: 'one MiB', why: 'too_long', text: { text: 'A', times: 1_048_576 } },
    { name: 'three parts', why: 'malformed', text: goodTicket },
    { name: 'six parts', why: 'malformed', text: `${sealed}.` },
    { name: 'with an encrypted key', why: 'malformed', text: replace(1, 'AAAA') },
    { name: 'a nonce of 8 bytes', why: 'malformed', text: replace(2, b64(bytes(0, 8))) },
    { name: 'a short tag', why: 'malformed', text: replace(4, parts[4].slice(0, 16)) },
    { name: 'padding', why: 'malformed', text: `${sealed}=` },
    { name: 'a header that is no JSON', why: 'malformed', text: replace(0, b64('header')) },
    { name: 'compressed', why: 'malformed', text: jwe(inside(), { header: { ...jweHead(), zip: 'DEF' } }) },
    { name: 'critical extensions', why: 'malformed', text: jwe(inside(), { header: { ...jweHead(), crit: ['x'] } }) },
    { name: 'another key agreement', why: 'algorithm', text: jwe(inside(), { header: { ...jweHead(), alg: 'A256KW' } }) },
    { name: 'another cipher', why: 'algorithm', text: jwe(inside(), { header: { ...jweHead(), enc: 'A128GCM' } }) },
    { name: 'alg none', why: 'algorithm', text: jwe(inside(), { header: { ...jweHead(), alg: 'none' } }) },
    { name: 'an old key', why: 'unknown_key', text: jwe(inside(), { key: moveKey(fleet, day - 2), header: jweHead(`m${day - 2}`) }) },
    { name: 'no kid', why: 'unknown_key', text: jwe(inside(), { header: { alg: 'dir', enc: 'A256GCM' } }) },
    { name: 'another fleet', why: 'signature', text: jwe(inside(), { key: moveKey('game') }) },
    { name: 'altered text', why: 'signature', text: replace(3, (parts[3][0] === 'A' ? 'B' : 'A') + parts[3].slice(1)) },
    { name: 'altered header', why: 'signature', text: replace(0, json({ ...jweHead(), x: 1 })) },
    { name: 'altered nonce', why: 'signature', text: replace(2, b64(bytes(0, 12))) },
    { name: 'altered tag', why: 'signature', text: replace(4, b64(bytes(0, 16))) },
    { name: 'inside is no JSON', why: 'malformed', text: jwe('state') },
    { name: 'state is no base64url', why: 'malformed', text: jwe(inside({ state: '{}' })) },
    { name: 'no state', why: 'malformed', text: jwe(inside({ state: undefined })) },
    { name: 'string exp', why: 'malformed', text: jwe(inside({ exp: `${now}` })) },
    { name: 'for another server', why: 'other_server', text: jwe(inside({ at: `chat-3#${inc}` })) },
    { name: 'for a former life of this one', why: 'other_server', text: jwe(inside({ at: `chat-2#${inc - 1}` })) },
    { name: 'of another session', why: 'other_move', text: sealed, sid: 's-2' },
    { name: 'of another move', why: 'other_move', text: sealed, mid: 'm-2' },
    { name: 'too long a life', why: 'too_long_lived', text: jwe(inside({ exp: now + 16 })) },
    { name: 'expired', why: 'expired', text: sealed, now_ms: (now + 15) * 1000 },
    { name: 'opened before', why: 'replayed', text: sealed, before: [{ text: sealed }] },
    { name: 'another state for the same move', why: 'replayed', text: jwe(inside({ state: '' }), { iv: bytes(1, 12) }), before: [{ text: sealed }] },
  ],
});
