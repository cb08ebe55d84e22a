// A server of node with a client of its own, which asks it over two connections that stay open, and checks every answer. It answers with what it
// is asked for; for "count", with how many answers the client has had. SIGTERM ends it.

const http = require("http");

let answers = 0;
const server = http.createServer((request, response) => {
	const body = request.url === "/count" ? String(answers) : request.url.slice(1);
	response.setHeader("Content-Length", body.length);
	response.end(body);
});
server.keepAliveTimeout = 0;
server.requestTimeout = 0;

const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });

function ask(number) {
	const path = `number-${number}`;
	const request = http.get({ host: "127.0.0.1", port: 8081, path: `/${path}`, agent }, (answer) => {
		let body = "";
		answer.on("data", (part) => (body += part));
		answer.on("end", () => {
			if (body !== path) throw new Error(`${body} instead of ${path}`);
			answers++;
			setTimeout(ask, 5, number + 2);
		});
	});
	request.on("error", (error) => {
		throw error;
	});
}

process.on("SIGTERM", () => process.exit(0));
server.listen(8081, "127.0.0.1", () => {
	ask(0);
	ask(1);
});
